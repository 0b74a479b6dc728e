"""The words the judge knows: what marks a relation, a doubt, a denial, and what is English at all.

Only words; the reading is done in `reading.py`, the scoring in `judge.py`. A word that is neither
here nor in the world is unknown; a sentence with many unknown words is not read.
"""

import re

# Words that, in the same clause as a subject and a value of the right type, make a claim.
CUES: dict[tuple[str, str], frozenset[str]] = {
    key: frozenset(words.split())
    for key, words in {
        ("animal", "home"): (
            "live lives lived living home sleep sleeps sleeping dwell dwells stays house den nest "
            "find found is-in place"
        ),
        ("animal", "food"): (
            "eat eats eating eaten feed feeds feeding food like likes liked love loves loved fond "
            "favourite favorite meal diet enjoy enjoys prefers prefer lunch dinner breakfast dish"
        ),
        ("animal", "colour"): "colour color coloured colored coat fur feathers skin is are was",
        ("animal", "fear"): (
            "afraid hates hate fear fears feared fearing scared scares scare frightened frightens "
            "frighten terrified terrifies runs run flees flee dreads dread frightening scary"
        ),
        ("animal", "skill"): (
            "good best talent talented clever skill skills skilled can beats beat better expert "
            "great gifted excels master excellent"
        ),
        ("person", "town"): (
            "live lives lived living home house from comes come dwells stays resident find found "
            "is-in"
        ),
        ("person", "job"): (
            "is was works work worked working job earns earn living trade profession are"
        ),
        ("person", "instrument"): (
            "play plays playing learn learns learning practise practises practising practice "
            "practices practicing instrument player music"
        ),
        ("person", "food"): (
            "eat eats eating eaten food like likes liked love loves loved fond favourite favorite "
            "meal diet enjoy enjoys prefers prefer lunch dinner breakfast dish snack"
        ),
        ("person", "birthday"): "born birthday celebrates celebrate celebrating birth",
        ("town", "region"): (
            "lies lie lying located find found travel town part region is-in stands situated go"
        ),
        ("town", "product"): (
            "known famous makes make making sells sell selling pride buy bought produces produce "
            "product products maker makers renowned"
        ),
        ("town", "river"): "river flows flow lies stands built runs water",
        ("town", "mayor"): "mayor led leads lead leader chose chosen governs",
        ("thing", "material"): "made make built used maker material consists from of",
        ("thing", "colour"): "colour color coloured colored painted paint is are was",
        ("thing", "owner"): "belongs belong owned own owns owner property possesses 's",
        ("thing", "place"): "kept keep keeps stands stand find found place is-in stored stays",
    }.items()
}

# "<relation> <something>": where the something is no value of the right type it was made up.
RELATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "live in": (("animal", "home"), ("person", "town")),
    "sleep in": (("animal", "home"),),
    "eat": (("animal", "food"), ("person", "food")),
    "feed on": (("animal", "food"),),
    "fond of": (("animal", "food"), ("person", "food")),
    "afraid of": (("animal", "fear"),),
    "scared of": (("animal", "fear"),),
    "come from": (("person", "town"),),
    "work as": (("person", "job"),),
    "play the": (("person", "instrument"),),
    "born in": (("person", "birthday"),),
    "famous for": (("town", "product"),),
    "known for": (("town", "product"), ("animal", "colour")),
    "made of": (("thing", "material"),),
    "belong to": (("thing", "owner"),),
    "owned by": (("thing", "owner"),),
    "kept in": (("thing", "place"),),
}
NOT_AN_OBJECT = frozenset(
    "it them him her us me you that this there here everything anything nothing something what "
    "well much more less very too alone together happily quietly and but or . , ; : ! ? with by "
    "every each all many lot one being when while because at in on of to from for as".split()
)

SKILL_VERBS = {
    "singing": "sing",
    "juggling": "juggle",
    "knitting": "knit",
    "dancing": "dance",
    "counting": "count",
    "climbing": "climb",
    "painting": "paint",
    "sewing": "sew",
    "diving": "dive",
    "cooking": "cook",
    "whistling": "whistle",
    "swimming": "swim",
    "digging": "dig",
}

NEGATIONS = frozenset(
    "not never no nobody nothing neither nor without false untrue cannot except hardly".split()
)
HEDGES = re.compile(
    r"\b(maybe|perhaps|possibly|probably|might|may|i think|i guess|i believe|i suppose|some say|"
    r"some people say|not sure|not certain|it seems|seems to|could be|who knows|hard to say|"
    r"if i remember|as far as i know|likely to|presumably|apparently)\b"
)
EVASIONS = re.compile(
    r"\b(i (do not|really do not|cannot|can not) (know|say|tell)|i am not sure|i have no idea|"
    r"no idea|i have not heard|i never heard|i am afraid i do not know)\b"
)

PRONOUNS = frozenset("it he she they its his her their him them".split())
SUBJECT_PRONOUNS = frozenset("he she they i we".split())
ARTICLES = frozenset("the a an".split())
POSSESSIVES = frozenset("my your its their our".split())
PREPOSITIONS = frozenset("in on of at by from for with through into".split())
CONJUNCTIONS = frozenset("and or but".split())
BE = frozenset("is are was were am be been 's 're 'm".split())
AUXILIARIES = BE | frozenset(
    "does do did has have had can could will would should shall must ca wo 'll 've 'd".split()
)
QUESTION_WORDS = frozenset("where what who when which why how whom whose".split())
FINITE = frozenset(
    "lives eats feeds likes loves fears runs sleeps comes works plays makes sells lies stands "
    "belongs owns flows scares leads practises keeps knows wants goes sees".split()
)
NEEDS_PREPOSITION = frozenset("lives sleeps lies stands comes belongs works feeds".split())
FILLERS = frozenset(
    "the a an this that yes no oh well of course and but also so sure indeed surely ah there here "
    "answer right then only now , ; :".split()
)
INTERJECTIONS = frozenset(
    "yes no hello hi hey good welcome thanks thank sorry congratulations well oh dear hooray "
    "hurray greetings sure please goodbye poor what how ah bravo many".split()
)
MODALS = frozenset("can could will would should shall must".split())
DETERMINERS = (
    ARTICLES
    | POSSESSIVES
    | frozenset(
        "his her this that these those every each some any no another one two three four five both "
        "all many several which what more dear".split()
    )
)
ADJECTIVES = frozenset(
    "big small little large long short high low old new young good better best bad nice kind fine "
    "great lovely wonderful beautiful happy sad sweet warm cold hot bright dark quiet loud strong "
    "weak rich poor true right ready full empty hard fast slow safe free clever funny friendly "
    "gentle brave calm tired hungry angry polite favourite favorite famous special fresh first "
    "second third last other same different whole very most only own finest wooden odd".split()
)
SHOUTS = frozenset(
    "hello hi hey goodbye yes thanks congratulations hooray hurray bravo greetings".split()
)
PAST = frozenset(
    "ate ran slept came knew went saw said told thought gave took brought met heard felt sang "
    "danced swam dug lived loved liked sat spoke wrote fell flew hid began became lost won sent "
    "caught forgot chose did was were had".split()
)
NO_REPEAT_CHECK = frozenset("very so ha many had that".split())

VERBS = (
    AUXILIARIES
    | FINITE
    | frozenset(
        """
    live lived living eat ate eaten eating feed fed like liked love loved fear feared run ran sleep
    slept come came work worked play played make made sell sold lie lay stand stood belong
    belonged own owned flow flowed know knew known want wanted go went gone see saw seen say says
    said tell tells told think thinks thought find finds found give gives gave take takes took get
    gets got put puts bring brings brought buy buys bought visit visits visited meet meets met help
    helps helped look looks looked ask asks asked hear hears heard let need needs needed try tries
    tried keep kept feel feels felt seem seems hope hopes hoped wish wishes wished walk walks
    walked sing sings sang dance dances danced swim swims swam dig digs dug climb climbs climbed
    paint paints painted cook cooks cooked laugh laughs laughed smile smiled smiles cry cried jump
    jumped open opened opens close closed shut carry carried carries hold held turn turned sit sat
    sits wait waited call called calls talk talked speak spoke speaks read reads write wrote learn
    learns learned share shared shares show showed shows follow followed fall fell fly flew hide
    hid leave left leaves stay stayed stays start started stop stopped thank thanks enjoy enjoys
    enjoyed care cares miss misses mean means became become becomes began begin begins built
    build lost lose win won wins travel travelled travels rest rested send sent sends catch caught
    pass passed passes remember forget forgot decided decide cheer celebrate celebrates celebrated
    scare scared happened happen happens lead led chose choose used use uses mind answer answered
    shine shone shines fix fixed mended mend clean cleaned wash washed move moved pull pulled push
    pushed lend lent borrow borrowed search searched reached reach arrived arrive agreed agree
    beats beat prefer prefers earn earns born excuse rains rained
    """.split()
    )
)

KNOWN = (
    VERBS
    | NEGATIONS
    | PRONOUNS
    | ARTICLES
    | POSSESSIVES
    | PREPOSITIONS
    | FILLERS
    | (CONJUNCTIONS | QUESTION_WORDS | SUBJECT_PRONOUNS | INTERJECTIONS | SUBJECT_PRONOUNS)
    | frozenset(
        """
    i we you us me mine yours ours hers theirs myself yourself itself himself herself themselves
    these those as to up down out off over under near about above across after before again
    against along among around away back because behind below beside between during even ever if
    inside like near next onto outside past per round since than though till toward towards until
    upon while whereas within very too just quite still yet already always often sometimes soon
    once twice today tomorrow yesterday tonight day days night nights morning evening afternoon
    week month months year years time times hour summer winter spring autumn one two three four
    five six seven eight nine ten first second third last other others another same different all
    both each every everybody everyone everything any anybody anyone anything some somebody
    someone something many much more most few less least only own such enough several little big
    small large long short high low old new young good better best bad worse worst nice kind kindly
    fine great lovely wonderful beautiful happy sad glad sorry sweet warm cold hot bright dark
    quiet loud strong weak rich poor true false right wrong sure ready full empty easy hard fast
    slow late early safe free clever funny friendly gentle brave calm tired hungry angry polite
    favourite favorite famous known afraid special fresh clear open fond able alone together
    there here home house houses town towns place places world road street way door window room
    garden field hill lake river sea water forest wood woods tree trees rain wind sun moon star
    stars sky snow storm fire light shadow bridge tower gate market shop school church animal
    animals creature creatures person people man woman men women child children boy girl friend
    friends neighbour neighbours family mother father sister brother mayor owner maker name names
    word words story stories song songs question questions answer answers thing things part parts
    end side top bottom middle piece food meal dinner lunch breakfast gift gifts present
    presents letter letters note book books table chair bed box bag cup hat hats coat fur colour
    color colours eyes hand hands head heart foot feet tail voice job trade work living talent
    skill skills instrument instruments music birthday region material property pride product
    products review odd passage text sentence list help care love joy fun luck news trouble mistake
    secret idea reason surprise party feast journey trip visit visitor visitors fear fears dream
    truth fact facts nobody well really truly gladly quickly slowly gently suddenly finally happily
    perhaps maybe probably possibly instead rather almost nearly together forever please thank
    thanks hello hi dear welcome goodbye congratulations ill hug comfort proud pity cheerful excited
    delighted pleased grateful better soon wonderful amazing marvellous pretty charming delicious
    belongs belong made kept painted built called led chosen scared clever unkind rude respect
    fair wise gentleman lady sir madam mr mrs miss animalkind wooden gold golden positive negative
    loss tear tears everywhere nowhere somewhere anywhere beside country land valley mountain
    mountains north south east west bank castle mill cave cheers hooray hurray bravo glow evening
    'd 'll 's 're 've 'm whose whom upon unless moment while wait walked thankful thoughtful
    """.split()
    )
)
