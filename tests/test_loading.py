"""What is loaded: all of a model's weights or none, every family, and the folders of strangers."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from rlhf_edu import dpo, lora, models, ppo, reward, sft, tokens
from rlhf_edu.engine import adapters, groups
from rlhf_edu.real import sources
from rlhf_edu.roles import LoraRoles, SeparateRoles

TOK = tiny.tokenizer()
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 280}
SHAPE |= {"num_attention_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2}
SHAPE |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOW = {"num_key_value_heads": 1, "sliding_window": 8}
FAMILIES = {
    "Llama": {},
    "GPT2": {},  # its token classifier calls the head `classifier`
    "GPTNeoX": {},
    "GPTNeo": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_heads": 2,
        "window_size": 8,
    },
    "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 8, "init_std": 0.2},  # no token classifier
    "Gemma3Text": {"head_dim": 8, **WINDOW},
    "Bloom": {"n_layer": 2, "n_head": 2},  # ALiBi
    "Falcon": {"alibi": True},
    "Granite": {},  # no classifier at all
    "Mistral": WINDOW,
}
every_family = pytest.mark.parametrize("family", FAMILIES)
GROUPS = [groups.make_group(TOK, ranking) for ranking in tiny.rankings(4, k=3)]
ROWS = [group.prompt + answer for group in GROUPS for answer in group.answers]


def make(family: str, **options) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE | FAMILIES[family] | options)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    TOK.save_pretrained(folder)
    return folder


def edit_weights(folder: Path, change, file: str = "model.safetensors") -> None:
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})


def alone(model) -> torch.Tensor:
    """Scores of all rows, each by itself."""
    rows = [torch.tensor([row]) for row in ROWS]
    return torch.cat([models.scores(model, ids, torch.ones_like(ids)) for ids in rows])


def load_scalar(folder: Path):
    return sources.scalar_model(sources.find_source(folder))


def load_policy(folder: Path):
    return sources.language_model(sources.find_source(folder), TOK)


# --- any causal model can be a reward model ------------------------------------------------------


@every_family
def test_every_family_has_reward_models_whole_and_lora(family: str, tmp_path: Path) -> None:
    base = load_policy(save(make(family), tmp_path / "base"))
    whole = models.scalar_model_from(base)
    expected = alone(whole)
    assert expected.std() > 0.05
    for side in (tokens.pad_left, tokens.pad_right):
        torch.testing.assert_close(models.scores(whole, *side(ROWS, 0)), expected)
    together = torch.cat(groups.answer_scores(whole, GROUPS, 0))
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
    models.save_model(whole, TOK, tmp_path / "rm", torch.float32)
    assert torch.equal(alone(load_scalar(tmp_path / "rm")), expected)

    adapter = tiny.spread(lora.take_off(lora.new_adapter(models.scalar_model_from(base), rank=2)))
    lora.save_adapter(adapter, TOK, tmp_path / "lora")
    expected = alone(load_scalar(tmp_path / "lora"))
    policy = lora.take_off(lora.new_adapter(load_policy(tmp_path / "base"), rank=2))
    roles = LoraRoles(load_policy(tmp_path / "base"), policy, lora.load_adapter(tmp_path / "lora"))
    torch.testing.assert_close(alone(roles.reward_model), expected, atol=1e-5, rtol=1e-5)


@every_family
def test_logprobs_of_a_group_are_those_of_each_answer_alone(family: str) -> None:
    model = make(family)
    assert max(len(group.tokens) for group in GROUPS) > 8  # than the windows
    for group, found in zip(GROUPS, groups.answer_logprobs(model, GROUPS, 0), strict=True):
        for answer, logprobs in zip(group.answers, found, strict=True):
            row = tokens.join([group.prompt], [answer], 0)
            wanted = models.response_logprobs(model, row)[0]
            torch.testing.assert_close(logprobs, wanted, atol=1e-5, rtol=1e-5)


def test_a_row_is_shared_only_where_every_layer_goes_by_its_mask() -> None:
    assert groups.shares_rows(make("Llama"), 1000) and groups.shares_rows(make("OPT"), 1000)
    mistral, state = make("Mistral"), make("Llama")
    assert groups.shares_rows(mistral, 8) and not groups.shares_rows(mistral, 9)
    assert not groups.shares_rows(make("Bloom"), 1) and not groups.shares_rows(make("Falcon"), 1)
    state.config.layer_types = ["full_attention", "linear_attention"]
    assert not groups.shares_rows(state, 1)


@pytest.mark.parametrize("train", ["reward", "dpo"])
def test_step_0_looks_at_the_longest_row_of_all(train: str, monkeypatch) -> None:
    # A window that nobody knows of is found although the rows of the first batch fit into it.
    monkeypatch.setattr(groups, "WINDOWS", ())
    model, short = make("Mistral", sliding_window=24), tiny.rankings(1, k=2)[0]
    long = tiny.Ranking(tiny.prompt(0), ("wet " * 30, "Yes!"), (True, True), (1, 2))
    for seed in range(2):
        with pytest.raises(RuntimeError, match="in its batch and alone differ"):
            if train == "dpo":
                config = dpo.DPOConfig(batch_size=1, seed=seed)
                dpo.train_dpo(model, model, TOK, [short, long], config)
            else:
                config, scalar = reward.RewardConfig(batch_size=1, seed=seed), None
                scalar = models.scalar_model_from(model)
                reward.train_reward(scalar, TOK, [short, long], config)


def test_a_sequence_classifiers_head_is_kept(tmp_path: Path) -> None:
    for family in ("Llama", "GPT2", "GPTNeoX", "OPT"):
        config = make(family).config
        config.num_labels = 1
        judge = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        loaded = load_scalar(save(judge, tmp_path / family))
        assert torch.equal(models.scalar_head(loaded).weight, judge.score.weight)
        assert models.scalar_head(loaded).bias.tolist() == [0.0]
        row = torch.tensor([ROWS[0]])
        torch.testing.assert_close(alone(loaded)[0], judge(row).logits[0, 0])
        # What we save opens there again; without the bias, which is 0 here.
        models.save_model(loaded, TOK, tmp_path / "ours", torch.float32)
        again = type(judge).from_pretrained(tmp_path / "ours")
        torch.testing.assert_close(again(row).logits, judge(row).logits)


def test_a_token_classifier_of_gpt2_from_before_keeps_its_head(tmp_path: Path) -> None:
    config = tiny.gpt2().config
    config.num_labels = 1
    old = transformers.GPT2ForTokenClassification(config).eval()
    loaded = load_scalar(save(old, tmp_path / "old"))
    torch.testing.assert_close(alone(loaded)[0], old(torch.tensor([ROWS[0]])).logits[0, -1, 0])


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_a_reward_model_made_with_peft_loads(family: str, tmp_path: Path) -> None:
    base = save(make(family), tmp_path / "base")
    auto = transformers.AutoModelForSequenceClassification
    judge = auto.from_pretrained(base, num_labels=1)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear")
    judge = get_peft_model(judge, config).eval()
    save(judge, tmp_path / "rm")
    expected = judge(torch.tensor([ROWS[0]])).logits[0, 0]
    torch.testing.assert_close(alone(load_scalar(tmp_path / "rm"))[0], expected)
    policy = lora.take_off(lora.new_adapter(load_policy(base), rank=2))
    roles = LoraRoles(load_policy(base), policy, lora.load_adapter(tmp_path / "rm"))
    torch.testing.assert_close(alone(roles.reward_model)[0], expected)
    assert lora.take_off(roles.backbone, "critic").head["bias"].shape == (1,)


# --- all weights, and no others ------------------------------------------------------------------


def test_missing_and_left_over_weights_are_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    hole = save(tiny.llama(), tmp_path / "hole")
    edit_weights(hole, lambda weights: weights.pop(name))
    for load in (load_policy, models.load_policy):
        with pytest.raises(ValueError, match=rf"hole: 1 of the weights are missing \({name}\)"):
            load(hole)
    more = save(tiny.llama(), tmp_path / "more")
    edit_weights(more, lambda weights: weights.update({"v_head.weight": torch.zeros(1, 16)}))
    with pytest.raises(ValueError, match=r"no place in the model \(v_head.weight\)"):
        load_policy(more)
    headless = save(models.scalar_model_from(tiny.llama()), tmp_path / "headless")
    edit_weights(headless, lambda weights: weights.pop("score.weight"))
    for load in (load_scalar, models.load_scalar_model):
        with pytest.raises(ValueError, match="its files hold no weights of a head"):
            load(headless)


def test_tied_weights_need_not_be_stored(tmp_path: Path) -> None:
    folder = save(tiny.llama(), tmp_path / "tied")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load_policy(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_policy_and_reward_model_do_not_take_each_others_place(tmp_path: Path) -> None:
    policy, scalar = tiny.llama(), models.scalar_model_from(tiny.llama())
    folder = save(scalar, tmp_path / "rm")
    with pytest.raises(ValueError, match="rm is a reward model, which predicts no text"):
        load_policy(folder)
    with pytest.raises(ValueError, match="is no reward model; train one"):
        load_scalar(save(policy, tmp_path / "policy"))
    with pytest.raises(ValueError, match="the adapter is a reward model's"):
        lora.put_on(tiny.llama(), tiny.reward_adapter())
    for wrong in ((scalar, scalar), (policy, policy), (policy, scalar, scalar)):
        with pytest.raises(ValueError, match="SeparateRoles: the .* must be a"):
            SeparateRoles(*wrong)
    with pytest.raises(ValueError, match="train_reward: the model must be a reward model"):
        reward.train_reward(policy, TOK, tiny.rankings(2))
    with pytest.raises(ValueError, match="train_sft: the model must be a language model"):
        sft.train_sft(scalar, TOK, tiny.demonstrations(2))
    with pytest.raises(ValueError, match="train_dpo: the reference must be a language model"):
        dpo.train_dpo(policy, scalar, TOK, tiny.rankings(2))


def test_a_smaller_vocabulary_is_refused_before_training() -> None:
    other, policy = tiny.llama(vocab_size=100), tiny.llama()
    with pytest.raises(ValueError, match="the reference reads 100 tokens, but the tokenizer has"):
        dpo.train_dpo(policy, other, TOK, tiny.rankings(2))
    roles = SeparateRoles(policy, models.scalar_model_from(other))
    with pytest.raises(ValueError, match="train_ppo: the reward_model reads 100 tokens"):
        ppo.train_ppo(roles, TOK, ["Is the cat old?"])
    with pytest.raises(ValueError, match="train_sft: the model reads 100 tokens"):
        sft.train_sft(other, TOK, tiny.demonstrations(2))


def test_a_language_model_with_one_label_is_saved_as_one(tmp_path: Path) -> None:
    model = tiny.llama()
    model.config.num_labels = 1
    models.save_model(models.round_weights(model), TOK, tmp_path / "policy")
    assert load_policy(tmp_path / "policy").config.num_labels == 1


# --- strangers' folders --------------------------------------------------------------------------


def stranger(place: Path) -> Path:
    """A folder of a model, and beside it that of an adapter for it."""
    base = save(tiny.llama(), place / "base")
    adapter = tiny.policy_adapter()
    adapter.config.base_model_name_or_path = str(base)
    lora.save_adapter(adapter, TOK, place / "adapter")
    return place / "adapter"


def spoil(file: Path, **changes) -> None:
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | changes))


EVIL = {
    "AutoModelForCausalLM": "evil.Evil",
    "AutoConfig": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", None],
}
SETTINGS = {
    "peft_type": ["LOHA", "EVIL", None, 3, ["LORA"]],
    "r": ["4", 0, -1, 10**9, 4.5, True, None],
    "lora_alpha": ["8", float("nan"), None],
    "rank_pattern": [{"(a+)+$": 4}, {"layers": "4"}, []],
    "alpha_pattern": [{"(a|a)*b": 4}],
    "target_modules": [3, [3], {"q_proj": 1}],
    "modules_to_save": [[""], 5, ["mlp"]],
    "layer_replication": [[[0, 2]] * 2000],
    "init_lora_weights": ["pissa", "olora", "loftq", "corda", 7],
    "megatron_config": [{"a": 1}],
    "trainable_token_indices": [[1, 2]],
    "something_new": [True],
    "base_model_name_or_path": [3, "", "nowhere/at/all", "/etc", "http://127.0.0.1:1/x"],
}


def test_settings_of_a_strangers_adapter_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = stranger(tmp_path)
    whole = (folder / adapters.CONFIG_FILE).read_text()
    assert load_policy(folder) is not None
    kinds = [(name, value) for name, values in SETTINGS.items() for value in values]
    start = time.perf_counter()
    for name, value in random.Random(0).sample(kinds, len(kinds)):
        (folder / adapters.CONFIG_FILE).write_text(whole)
        spoil(folder / adapters.CONFIG_FILE, **{name: value})
        with pytest.raises((ValueError, OSError)) as error:
            load_policy(folder)
        assert len(str(error.value)) < 500 and "\n" not in str(error.value), (name, value)
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("content", ["[]", "7", "{", "", '{"peft_type": "LORA"}', "\x00\xff"])
def test_an_adapters_settings_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    folder = stranger(tmp_path)
    (folder / adapters.CONFIG_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="adapter"):
        lora.load_adapter(folder)


def test_an_adapters_broken_weights_are_refused(tmp_path: Path) -> None:
    folder = stranger(tmp_path)
    file, kept = folder / adapters.WEIGHTS_FILE, (folder / adapters.WEIGHTS_FILE).read_bytes()
    for content in (kept[: len(kept) // 2], b"", b"\x80\x04no pickle", kept[:8] + b"x" + kept[9:]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be loaded"):
            lora.load_adapter(folder)
    file.write_bytes(kept)
    for part in ("layers.1.self_attn.v_proj.lora_B", "layers.0.mlp.up_proj.lora_A"):
        edit_weights(folder, lambda w, p=part: [w.pop(k) for k in [*w] if p in k], file.name)
        with pytest.raises(ValueError, match=f"does not fit the model: for example .*{part}"):
            load_policy(folder)
        file.write_bytes(kept)
    edit_weights(folder, lambda weights: weights.clear(), file.name)
    with pytest.raises(ValueError, match="holds additions of rank nothing"):
        lora.load_adapter(folder)


def test_where_an_adapter_adds_is_read_off_its_weights(tmp_path: Path) -> None:
    # Not by the folder's regular expressions: this one would take longer than the sun has left.
    folder = stranger(tmp_path)
    ids, expected = torch.tensor([ROWS[0]]), load_policy(folder)(torch.tensor([ROWS[0]])).logits
    for changes in (
        {"target_modules": r"(([\w.]+)+)+x"},
        {"target_modules": "all-linear"},
        {"target_modules": [f"layer{i}" for i in range(10**5)]},
        {"exclude_modules": r"(([\w.]+)+)+x"},
        {"layers_to_transform": [0, 1], "layers_pattern": [r"(([\w.]+)+)+x"]},
    ):
        kept = (folder / adapters.CONFIG_FILE).read_text()
        spoil(folder / adapters.CONFIG_FILE, **changes)
        torch.testing.assert_close(load_policy(folder)(ids).logits, expected)
        (folder / adapters.CONFIG_FILE).write_text(kept)


def test_an_adapter_on_an_adapter_is_refused(tmp_path: Path) -> None:
    folder = stranger(tmp_path)
    shutil.copytree(folder, tmp_path / "second")
    spoil(tmp_path / "second" / adapters.CONFIG_FILE, base_model_name_or_path=str(folder))
    with pytest.raises(ValueError, match="is an adapter on another adapter, .* merge that one"):
        sources.find_source(tmp_path / "second")


def test_code_that_comes_with_a_folder_is_never_run_nor_asked_about(tmp_path, monkeypatch) -> None:
    def ask(*_) -> str:
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", ask)
    for place, file in (("model", "config.json"), ("words", "tokenizer_config.json")):
        folder = save(tiny.llama(), tmp_path / place)
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
        kind = {"model_type": "evil"} if place == "model" else {"tokenizer_class": "Evil"}
        spoil(folder / file, auto_map=EVIL, **kind)
        with pytest.raises(ValueError, match="cannot be loaded"):
            source = sources.find_source(folder)
            sources.language_model(source, sources.source_tokenizer(source))
    assert not (tmp_path / "ran").exists()


def test_a_config_of_a_million_layers_is_refused_at_once(tmp_path: Path) -> None:
    folder = save(tiny.llama(), tmp_path / "base")
    spoil(folder / "config.json", num_hidden_layers=10**6)
    for load in (load_policy, models.load_policy):
        with pytest.raises(ValueError, match="asks for 1000000 layers"):
            load(folder)


def test_an_adapter_that_replaces_the_output_layer_is_merged_or_refused(tmp_path: Path) -> None:
    base = save(tiny.llama(tie_word_embeddings=False), tmp_path / "base")
    extra = ["lm_head", "embed_tokens"]
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=extra
    )
    model = get_peft_model(models.load_policy(base), config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape))
    save(model, tmp_path / "adapter")
    source, ids = sources.find_source(tmp_path / "adapter"), torch.tensor([ROWS[0]])
    merged = sources.language_model(source, TOK)
    torch.testing.assert_close(merged(ids).logits, model.eval()(ids).logits)
    assert alone(models.scalar_model_from(merged)).isfinite().all()
    with pytest.raises(ValueError, match="also replaces lm_head, .* leave out --lora"):
        lora.put_on(models.scalar_model_from(models.load_policy(base)), source.adapter)
