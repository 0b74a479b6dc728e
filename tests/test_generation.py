"""Sampling: the law, the masks, the random numbers."""

import gc
import weakref

import pytest
import tiny_models as tiny
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import AutoModelForCausalLM, DynamicCache, MistralConfig

from rlhf_edu import generation, losses, sampling
from rlhf_edu.engine import sampling_cuda
from rlhf_edu.engine.economy import bf16_products
from rlhf_edu.generation import generate
from rlhf_edu.models import response_logits, response_logprobs
from rlhf_edu.pretrain import train_tokenizer

TOK = tiny.tokenizer()
PROMPTS = ["Is the cat old?", "The dog", "Hen? " * 9, "x", "Yes! Yes!"]


class Script(torch.nn.Module):
    """A model that writes the same given tokens for every prompt of three tokens."""

    device = torch.device("cpu")

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, input_ids, attention_mask, position_ids, past_key_values, **options):
        logits = torch.full((len(input_ids), 1, 280), -1e4)
        logits[:, 0, self.tokens[int(position_ids[0, -1]) - 2]] = 0
        past_key_values.update(torch.zeros(len(input_ids), 1, 1, 1), logits[:, :, None, :1], 0)
        return type("Output", (), {"logits": logits})


@pytest.mark.parametrize("model", tiny.both(), ids=["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_training_finds_the_same_logprobs(model, temperature: float) -> None:
    rollout = generate(model, TOK, PROMPTS * 4, 12, temperature, batch_size=6)
    again = response_logprobs(model, rollout, temperature)
    assert ((again - rollout.logprobs) * rollout.mask).abs().max() < 1e-4
    assert rollout.tokens.shape == rollout.attention_mask.shape
    assert rollout.response.shape == rollout.mask.shape == rollout.logprobs.shape
    assert (rollout.lengths >= 1).all() and not rollout.tokens.is_inference()


def test_samples_do_not_depend_on_the_batch() -> None:
    model = tiny.llama()
    texts = [generate(model, TOK, PROMPTS, 12, seed=5, batch_size=b).texts(TOK) for b in (1, 2, 9)]
    assert texts[0] == texts[1] == texts[2]
    assert generate(model, TOK, PROMPTS, 12, seed=6).texts(TOK) != texts[0]
    generator = torch.Generator().manual_seed(5)
    assert generate(model, TOK, PROMPTS, 12, seed=generator).texts(TOK) == texts[0]
    assert generate(model, TOK, PROMPTS, 12, seed=generator).texts(TOK) != texts[0]


def test_a_prompt_with_several_answers_is_read_once() -> None:
    model, read = tiny.llama(), []
    model.register_forward_pre_hook(
        lambda module, args, options: read.append(options["input_ids"].shape), with_kwargs=True
    )
    generate(model, TOK, PROMPTS * 4, 6)
    rows, width = read[0]
    assert rows == len(PROMPTS) and width > 1
    assert all(shape[1] == 1 for shape in read[1:]) and read[1][0] > rows


@pytest.mark.parametrize("model", tiny.both(), ids=["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_shapes_that_never_change_give_the_same_samples(model, temperature: float) -> None:
    rollout = generate(model, TOK, PROMPTS * 4, 40, temperature, batch_size=6)
    static = generate(model, TOK, PROMPTS * 4, 40, temperature, batch_size=6, static=True)
    assert temperature < 1 or 1 < rollout.ended.sum() < len(rollout)
    assert torch.equal(rollout.tokens, static.tokens)
    assert torch.equal(rollout.attention_mask, static.attention_mask)
    assert torch.equal(rollout.ended, static.ended)
    torch.testing.assert_close(rollout.logprobs, static.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("static", [False, True])
def test_every_way_to_end_an_answer_is_honoured(static: bool) -> None:
    model = tiny.llama()
    usual = generate(model, TOK, PROMPTS * 4, 20, static=static)
    # An end that the model's generation_config names, and any token that holds a letter.
    second = int(usual.response[0, 2])
    within = [i for i in range(3, 280) if "o" in TOK.decode([i])]
    assert len(within) > 3
    model.generation_config.eos_token_id = [2, second]
    for stop, ends in ((None, [2, second]), ("o", [2, second, *within])):
        rollout = generate(model, TOK, PROMPTS * 4, 20, static=static, stop=stop)
        for row, wanted in zip(range(len(rollout)), usual.response.tolist(), strict=True):
            first = next((i for i, token in enumerate(wanted) if token in ends), None)
            if usual.ended[row] and first is None:
                first = int(usual.lengths[row]) - 1
            assert rollout.ended[row] == (first is not None)
            assert rollout.lengths[row] == (20 if first is None else first + 1)
    assert generation._ending_ids(model, TOK, None).tolist() == sorted([2, second])


def test_a_text_does_not_show_its_end() -> None:
    model = Script([40, 41, 42, 43])
    model.generation_config = type("Config", (), {"eos_token_id": 42})
    rollout = generate(model, TOK, [[1, 5, 6]], 4)
    assert rollout.ended.all() and rollout.texts(TOK) == [TOK.decode([40, 41])]


def record_on_cpu(step, device):
    """As a CUDA graph: note every operation once, and do the same again with the same tensors."""
    assert device.type == "cpu"
    graph, done = make_fx(step)(), []

    def replay() -> None:
        if done:  # unlike a GPU, this has done for the first time what it was to note
            graph()
        done.append(True)

    return replay


@pytest.fixture
def recording(monkeypatch) -> list:
    """Steps are recorded and kept, as on a GPU; the list of what is kept."""
    monkeypatch.setattr(sampling_cuda, "_recorded", record_on_cpu)
    monkeypatch.setattr(sampling_cuda, "_records", lambda device: True)
    sampling_cuda.forget_recordings()
    yield sampling_cuda._KEPT
    sampling_cuda.forget_recordings()


@pytest.mark.parametrize("model", [tiny.llama(), tiny.gpt2(), tiny.lora_roles().policy])
def test_static_shapes_get_along_with_adapters_and_bf16(model) -> None:
    error = {}
    for static in (False, True):
        with bf16_products(model):
            rollout = generate(model, TOK, PROMPTS * 4, 20, static=static)
            again = response_logprobs(model, rollout)
        assert ((again - rollout.logprobs) * rollout.mask).abs().max() < 0.3
        exact = response_logprobs(model, rollout)
        error[static] = ((exact - rollout.logprobs) * rollout.mask).abs().sum() / rollout.mask.sum()
    # Rounded otherwise, a number may fall to the other side of a border between two tokens; but
    # what was sampled is no further from the numbers of fp32.
    assert error[True] < 1.3 * error[False] < 0.1


@pytest.mark.parametrize("model", tiny.both(), ids=["llama", "gpt2"])
def test_a_recorded_step_can_be_done_again(model, recording) -> None:
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    for seed in (0, 1):
        rollout = generate(model, TOK, PROMPTS, 20, seed=seed)
        calls.clear()
        recorded = generate(model, TOK, PROMPTS, 20, seed=seed, static=True)
        # The prompts; at first also two tokens, and the recording.
        assert len(calls) == (1 if seed else 1 + sampling_cuda.WARM + 1)
        assert torch.equal(rollout.tokens, recorded.tokens)
        assert torch.equal(rollout.ended, recorded.ended)
        torch.testing.assert_close(rollout.logprobs, recorded.logprobs, atol=1e-4, rtol=0)


def test_a_recording_serves_smaller_batches_and_changed_weights(recording) -> None:
    model, answers = tiny.llama(), {}
    for static in (True, False):
        torch.manual_seed(0)
        answers[static] = [generate(model, TOK, PROMPTS * 3, 20, static=static)]
        [kept] = recording[-1:] or [None]
        with torch.no_grad():
            model.lm_head.weight.add_(0.1 * torch.randn_like(model.lm_head.weight))
        for asked, tokens in ((PROMPTS[:2] * 5, 20), (PROMPTS * 3, 17), (PROMPTS * 2, 18)):
            answers[static].append(generate(model, TOK, asked, tokens, seed=3, static=static))
        assert recording == [kept] and kept.sizes == (16, 64, 32)
        with torch.no_grad():
            torch.manual_seed(0)
            model.lm_head.weight.sub_(0.1 * torch.randn_like(model.lm_head.weight))
    for one, two in zip(answers[True], answers[False], strict=True):
        assert torch.equal(one.tokens, two.tokens) and torch.equal(one.ended, two.ended)


def test_a_recording_is_made_anew_when_another_path_would_be_taken(recording, monkeypatch) -> None:
    monkeypatch.setattr(sampling_cuda, "_recorded", lambda step, device: step)
    roles, asked = tiny.lora_roles(), PROMPTS * 2
    made = []

    def states(model, **options) -> int:
        generate(model, TOK, asked, 5, static=True, **options)
        made.append(recording[-1])
        return len(set(map(id, made)))

    assert [states(roles.policy), states(roles.policy)] == [1, 1]
    assert states(roles.reference) == 2 and states(roles.policy) == 2  # two are kept
    assert states(roles.policy, temperature=0.7) == 3
    handle = roles.backbone.get_base_model().lm_head.register_forward_hook(lambda *_: None)
    assert states(roles.policy) == 4
    handle.remove()
    head = roles.backbone.get_base_model().lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    assert states(roles.policy) == 5 and len(recording) == sampling_cuda.KEEP


def test_what_is_recorded_goes_with_the_model(recording) -> None:
    model = tiny.llama()
    generate(model, TOK, PROMPTS, 5, static=True)
    place = weakref.ref(recording[0].logits)
    del model
    gc.collect()  # what has been noted on a CPU is a web
    assert not recording and place() is None


def test_what_is_recorded_under_autocast_ends_with_it(recording, monkeypatch) -> None:
    monkeypatch.setattr(sampling_cuda, "_recorded", lambda step, device: step)
    model = tiny.llama()
    with bf16_products(model):
        generate(model, TOK, PROMPTS, 5, static=True)
    assert not recording
    generate(model, TOK, PROMPTS, 5, static=True)
    assert len(recording) == 1


def test_what_cannot_be_recorded_is_done_one_by_one_and_said_once(monkeypatch) -> None:
    streams = ["usual"]

    def step() -> None:
        raise RuntimeError("not permitted when the stream is capturing\nCUDA kernel errors ...")

    class Recording:
        """As `torch.cuda.graph` when a step asks the device: what it says in the end is no help."""

        def __init__(self, graph: object, **options: object) -> None:
            assert options == {"stream": "aside", "capture_error_mode": "thread_local"}

        def __enter__(self) -> None:
            streams.append("aside")

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(sampling_cuda, "_REFUSED", [])
    monkeypatch.setattr(sampling_cuda, "_recording_stream", lambda device: "aside")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    device = torch.device("cuda")
    with pytest.warns(UserWarning, match="takes longer: not permitted .* capturing$"):
        assert sampling_cuda._recorded(step, device) is None
    assert streams == ["usual", "aside", "usual"]
    assert sampling_cuda._recorded(step, device) is None and len(streams) == 3


@pytest.mark.parametrize("model", tiny.both(), ids=["llama", "gpt2"])
def test_a_static_step_never_asks_the_device(model, monkeypatch) -> None:
    # A tensor on "meta" has no numbers: to ask for one, or to mix it with others, is an error.
    monkeypatch.setattr(losses, "_holds", lambda condition: True)
    monkeypatch.setattr(sampling_cuda, "LOOK_EVERY", 100)
    model = model.to("meta")
    logits = torch.zeros(3, 280, device="meta")
    monkeypatch.setattr(sampling, "_read", lambda *_: (logits, DynamicCache()))
    ids, ends = (torch.ones(shape, dtype=torch.long, device="meta") for shape in ((3, 7), (2,)))
    uniforms = torch.rand(3, 5, dtype=torch.float64, device="meta")
    inputs = model, ids, torch.ones_like(ids), uniforms, 1.0, ends
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        sampling._sample(*inputs)

    def read(model, places, *prompts) -> None:
        places.logits = torch.zeros(8, 280, device="meta")
        for layer in places.cache.layers:
            layer.lazy_initialization(*[torch.zeros(8, 2, 1, 8, device="meta")] * 2)

    monkeypatch.setattr(sampling_cuda, "_read_prompts", read)
    assert sampling_cuda._sample_static(*inputs).tokens.shape == (3, 12)


def test_some_models_need_a_cache_that_grows() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 280}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    window = AutoModelForCausalLM.from_config(MistralConfig(**sizes, **heads, sliding_window=4))
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not sampling_cuda._has_static_cache(window)
    assert not sampling_cuda._has_static_cache(tiny.llama(rope_parameters=rope))
    assert sampling_cuda._has_static_cache(tiny.llama())


def test_greedy_takes_the_likeliest() -> None:
    model = tiny.gpt2()
    rollout = generate(model, TOK, PROMPTS, 8, temperature=0)
    best = response_logits(model, rollout).argmax(-1)
    assert torch.equal(best * rollout.mask, rollout.response * rollout.mask)


@pytest.mark.parametrize(
    ("script", "length", "ended"),
    [
        ([40, 2, 41, 42, 43], 2, True),
        ([2, 2, 2, 2, 2], 1, True),
        ([0, 40, 1, 0, 2], 5, True),  # sampled padding and beginning-of-text end nothing
        ([40, 41, 42, 0, 43], 5, False),
    ],
)
def test_an_answer_ends_at_its_first_end_of_text(script, length: int, ended: bool) -> None:
    rollout = generate(Script(script), TOK, [[1, 5, 6], [1, 7, 8]], 5)
    assert rollout.lengths.tolist() == [length] * 2 and rollout.ended.tolist() == [ended] * 2
    assert rollout.response[0, :length].tolist() == script[:length]
    assert rollout.logprobs.abs().max() < 1e-3


def test_sampling_follows_the_softmax() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0, 0.5, -3.0]])
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = sampling._draw(logits.expand(100_000, -1), uniform, 0.7).bincount(minlength=5)
    expected = (logits[0] / 0.7).softmax(-1) * 100_000
    assert ((drawn - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 degrees, p = 0.001


def test_a_token_of_probability_0_is_never_drawn() -> None:
    logits = torch.tensor([[-1e9, 0.0, -1e9, 0.0, -1e9]]).expand(3, -1)
    edges = torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64)
    assert sampling._draw(logits, edges, 1.0).tolist() == [1, 3, 3]


def test_a_thin_tail_keeps_its_share() -> None:
    # One token takes nearly all, and 10,000 the rest: in 32 bits sixty of them share one sum.
    law = torch.full((1, 10_001), 1e-9)
    law[0, 0] = 1 - 1e-5
    places = 1 - 0.5e-5 + torch.arange(0, 10, dtype=torch.float64) * 2e-8
    steps = sampling._draw(law.log().expand(10, -1), places, 1.0).diff()
    assert ((steps > 10) & (steps < 30)).all()


SIZES = (700, sampling.MANY + 1, 50_257)  # searched in one step, and in two


@pytest.mark.parametrize("size", SIZES)
def test_the_token_drawn_is_the_first_to_pass_the_number(size: int) -> None:
    random = torch.Generator().manual_seed(size)
    law = (4 * torch.randn(6, size, generator=random)).softmax(-1)
    law[:, 100:600] = 0
    sums = law.double().cumsum(-1)
    for _ in range(20):
        uniform = torch.rand(6, generator=random, dtype=torch.float64)
        drawn = sampling._pick(law, uniform)[:, None]
        target = (uniform[:, None] * sums[:, -1:]).expand(-1, 1)
        before = sums.gather(1, drawn) - law.gather(1, drawn)
        assert (before <= target + 1e-14).all() and (sums.gather(1, drawn) > target - 1e-14).all()


@pytest.mark.parametrize("size", SIZES)
def test_at_the_edges_a_possible_token_is_drawn(size: int) -> None:
    for possible in ([0], [size - 1], [300, 511, 512, 640], [512], [3, size - 2]):
        law = torch.zeros(2, size)
        law[:, possible] = torch.rand(len(possible), generator=torch.Generator().manual_seed(1))
        edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
        assert sampling._pick(law, edges).tolist() == [possible[0], possible[-1]]


def test_a_large_vocabulary_is_drawn_by_its_law() -> None:
    law = torch.full((1, 40_000), 0.5 / 39_996)
    law[0, [0, 511, 512, 39_999]] = 0.125
    random = torch.Generator().manual_seed(1)
    drawn = [
        sampling._pick(law.expand(200, -1), torch.rand(200, generator=random, dtype=torch.float64))
        for _ in range(10)
    ]
    kind = torch.zeros(40_000, dtype=torch.long)  # of the small ones, two halves
    kind[20_000:], kind[[0, 511, 512, 39_999]] = 1, torch.tensor([2, 3, 4, 5])
    found = kind[torch.cat(drawn)].bincount(minlength=6)
    expected = torch.zeros(6).index_add(0, kind, law[0]) * 2000
    assert ((found - expected) ** 2 / expected).sum() < 20.5  # chi-square, 5 degrees, p = 0.001


def test_stop_ends_an_answer() -> None:
    [newline] = TOK.encode("\n")
    [letter] = TOK.encode("a")
    rollout = generate(Script([letter, newline, letter, 2]), TOK, [[1, 5, 6]], 4, stop="\n")
    assert rollout.ended.all() and rollout.lengths.tolist() == [2]
    assert rollout.texts(TOK) == ["a"]
    with pytest.raises(ValueError, match="no single token"):
        generate(tiny.llama(), TOK, PROMPTS, stop="no such token")


def test_any_token_that_holds_stop_ends_an_answer() -> None:
    tokenizer = train_tokenizer(["a\n\n"] * 9, vocab_size=260)
    [letter], [double] = tokenizer.encode("a"), tokenizer.encode("\n\n")
    rollout = generate(Script([letter, double, letter, 2]), tokenizer, [[1, 5, 6]], 4, stop="\n")
    assert rollout.ended.all() and rollout.lengths.tolist() == [2]
    assert rollout.texts(tokenizer) == ["a"]


def test_stop_ends_an_answer_in_shapes_that_never_change_too() -> None:
    model, asked = tiny.llama(), PROMPTS * 4
    grown, static = (generate(model, TOK, asked, 20, static=s, stop="e") for s in (False, True))
    assert torch.equal(grown.tokens, static.tokens) and torch.equal(grown.ended, static.ended)
    assert grown.ended.sum() > generate(model, TOK, asked, 20).ended.sum()


def test_rows_drop_common_padding() -> None:
    rollout = generate(tiny.llama(), TOK, PROMPTS, 12)
    short = rollout.rows(torch.tensor([3, 1]))
    assert short.prompt_length < rollout.prompt_length
    assert short.texts(TOK) == [rollout.texts(TOK)[i] for i in (3, 1)]
    model = tiny.llama()
    width = short.response.shape[1]
    expected = response_logprobs(model, rollout)[[3, 1], :width]
    difference = (response_logprobs(model, short) - expected) * short.mask
    assert difference.abs().max() < 1e-5


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        generate(tiny.llama(), TOK, [])
    with pytest.raises(ValueError, match="temperature >= 0"):
        generate(tiny.llama(), TOK, PROMPTS, temperature=-1)


def test_a_single_token_may_be_asked_for() -> None:
    rollout = generate(tiny.llama(), TOK, ["Is it wet?"], 1)
    assert rollout.response.shape == (1, 1) and rollout.lengths.tolist() == [1]
