import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cagsr.config import Config, check_paths, reference
from cagsr.config.fields import Section
from cagsr.config.yaml_document import read_document, write_document
from cagsr.errors import InputError

TASK = "data: {task: slots}\n"


def load(tmp_path, text, overrides=()):
    path = tmp_path / "cfg.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Config.load(path, overrides)


def complaint(tmp_path, text, overrides=()):
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_task_is_all_that_a_config_needs():
    config = Config.load(None, ["data.task=slots"])
    assert (config.sampling.candidates, config.algorithm.name, config.reward.preset) == (8, "grpo", "robust")


def test_a_misspelt_key_is_named_with_its_line_and_the_right_word(tmp_path):
    text = TASK + "train:\n  learing_rate: 1e-4\n"
    assert complaint(tmp_path, text) == (
        "cfg.yaml:3 unknown key 'learing_rate'; did you mean 'learning_rate'?"
    )


def test_a_misspelt_override_is_named_as_an_override(tmp_path):
    assert complaint(tmp_path, TASK, ["train.learing_rate=1"]) == (
        "override train.learing_rate: unknown key 'learing_rate'; did you mean 'learning_rate'?"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('train: {steps: "10"}', 'train.steps: got "10", expected an integer of at least 1'),
        ("train: {steps: 10.0}", "train.steps: got 10.0, expected an integer of at least 1"),
        ("train: {steps: true}", "train.steps: got true, expected an integer of at least 1"),
        ("train: {steps: 0}", "train.steps: got 0, expected an integer of at least 1"),
        ("train: {steps:}", "train.steps: got null, expected an integer of at least 1"),
        ("train: {learning_rate: -1}", "train.learning_rate: got -1, expected a number above 0, at most 1"),
        (
            "train: {learning_rate: .nan}",
            "train.learning_rate: got NaN, expected a number above 0, at most 1",
        ),
        (
            "reward: {terms: [{signal: a, weight: .inf}]}",
            "reward.terms.0.weight: got Infinity, expected a number",
        ),
        ("sampling: {top_p: 1.5}", "sampling.top_p: got 1.5, expected a number above 0, at most 1"),
        (
            "algorithm: {name: ppoo}",
            'algorithm.name: got "ppoo", expected one of grpo, dr-grpo, ppo, rloo, policy-gradient; '
            "did you mean 'ppo'?",
        ),
        ("model: {lora: {r: 1.5}}", "model.lora.r: got 1.5, expected an integer of at least 1"),
        (
            "reward: {layers: [1, first]}",
            'reward.layers: got [1, "first"], expected one of all, last, last_half or a list, '
            "each an integer of at least 0",
        ),
        (
            "reward: {terms: [3]}",
            "reward.terms.0: got 3, expected a mapping with the keys signal, weight, standardise, options",
        ),
        (
            "reward: {terms: [{weight: 1}]}",
            "missing key reward.terms.0.signal: Name of a signal, or dotted path of a function of your own.",
        ),
        (
            "model: {trust_remote_code: maybe}",
            'model.trust_remote_code: got "maybe", expected true or false',
        ),
        (
            "trains: {}",
            "unknown key 'trains'; did you mean 'train'?",
        ),
        ("model: {learning_rate: 1}", "unknown key 'learning_rate' in model; it belongs to train or sft"),
        ("Learning-Rate: 1", "unknown key 'Learning-Rate'; it belongs to train or sft"),
        ("reward: {kind: idf}", "unknown key 'kind' in reward; it belongs to reward.salience"),
        ("compare: {seed: 1}", "unknown key 'seed'; did you mean 'seeds'?"),
        ("sampling: {TopK: 1}", "unknown key 'TopK'; did you mean 'top_k'?"),
    ],
)
def test_a_wrong_value_is_answered_by_what_was_expected(tmp_path, line, message):
    assert complaint(tmp_path, TASK + line + "\n") == f"cfg.yaml:2 {message}"


def test_all_mistakes_of_a_file_are_told_at_once_in_its_order(tmp_path):
    text = TASK + "foo: 1\n" * 1 + "\n" * 8 + "train:\n  steps: -1\n  warmup_step: 3\nsampling: {top_k: x}\n"
    lines = complaint(tmp_path, text).splitlines()
    assert [line.split()[0] for line in lines] == ["cfg.yaml:2", "cfg.yaml:12", "cfg.yaml:13", "cfg.yaml:14"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  steps: 1\n  steps: 2\n", "cfg.yaml:3 duplicate key 'steps', first on line 2; remove one"),
        ("train: {steps: 1\n", "cfg.yaml:2 broken YAML"),
        ("a: b: c\n", "cfg.yaml:1 broken YAML"),
        ("- 1\n", "cfg.yaml:1 expected a mapping of keys, got list"),
        ("hello\n", "cfg.yaml:1 expected a mapping of keys, got str"),
        ("data: &x {task: slots}\nrun: *x\n", "cfg.yaml:2 broken YAML: aliases (*name) are not read"),
        ("run: !!python/object/apply:os.getcwd []\n", "cfg.yaml:1 tag '!!python/object/apply:os.getcwd'"),
        ("a: " + "[" * 200, "cfg.yaml:1 broken YAML: nested too deeply"),
        ("a: " + "9" * 5000, "cfg.yaml:1 99999999999999999999... is too large"),
        ("? [a]\n: 1\n", "cfg.yaml:1 a key must be a word"),
        (b"data:\n  task: \xff\n", "cfg.yaml:2 is not UTF-8"),
        (b"data:\n  task: \x00\n", "cfg.yaml:2 broken YAML: character"),
        ('run: {directory: "a\\0"}\n', "cfg.yaml:1 text holds a NUL"),
        ('run: {directory: "\\ud800"}\n', "cfg.yaml:1 text holds"),
        ('run: {directory: "\\Uffffffff"}\n', "cfg.yaml:1 broken YAML: an escape"),
    ],
)
def test_a_file_that_is_not_plain_yaml_is_refused_with_its_line(tmp_path, text, message):
    assert complaint(tmp_path, text).startswith(message)


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no\.yaml: no such file"):
        Config.load(tmp_path / "no.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        Config.load(tmp_path)


def test_numbers_and_words_read_as_a_person_means_them(tmp_path):
    text = TASK + "train: {learning_rate: 1e-4, mixed_precision: no, gradient_checkpointing: yes}\n"
    train = load(tmp_path, text + "run: {directory: 12:30}\nmodel: {lora:, trust_remote_code: off}\n").train
    assert (train.learning_rate, train.mixed_precision, train.gradient_checkpointing) == (1e-4, "no", True)


def test_a_section_whose_keys_are_commented_out_means_its_defaults(tmp_path):
    assert load(tmp_path, TASK + "train:\n  # steps: 3\n").train.steps == 100


def test_overrides_win_over_the_file_and_the_last_one_over_the_others(tmp_path):
    text = TASK + "train: {steps: 3, learning_rate: 0.1}\n"
    config = load(
        tmp_path, text, ["train.steps=5", "train.steps=7", "reward.layers=[0, 2]", "model.lora.r=11"]
    )
    assert (config.train.steps, config.train.learning_rate) == (7, 0.1)
    assert config.reward.layers == [0, 2]
    assert config.model.lora is not None
    assert (config.model.lora.r, config.model.lora.alpha) == (11, 32.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "override 'train.steps' is not of the form section.key=value"),
        ("=3", "override '=3' is not of the form section.key=value"),
        ("train..steps=3", "override 'train..steps=3' is not of the form section.key=value"),
        ("train.steps={", "override train.steps value:1 broken YAML"),
        ("data.task.name=x", "override data.task.name: data.task is not a mapping"),
        ("train.steps=many", 'override train.steps: got "many", expected an integer of at least 1'),
        ("data=3", "override data: got 3, expected a mapping with the keys task"),
        ("dta.task=qa", "override dta.task: unknown key 'dta'; did you mean 'data'?"),
    ],
)
def test_a_broken_override_is_refused_by_name(tmp_path, override, message):
    assert complaint(tmp_path, TASK, [override]).startswith(message)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("", [], "cfg.yaml: give either data.task or data.source, and not both"),
        ("data: {task: qa, source: x.csv}", [], "cfg.yaml:1 give either data.task or data.source"),
        ("data: {source: x.csv}", [], "cfg.yaml:1 data.source needs model.name"),
        (TASK + "sampling: {candidates: 1}", [], "cfg.yaml:2 grpo compares the candidates"),
        (TASK, ["sampling.candidates=1"], "override sampling.candidates: grpo compares the candidates"),
        (
            TASK + "train: {replacements: 2}\nalgorithm: {name: ppo}\nsampling: {candidates: 1}",
            [],
            "cfg.yaml:2 train.replacements looks for prompts whose candidates differ in reward",
        ),
        (
            TASK + "algorithm: {name: dr-grpo}",
            ["sampling.candidates=1"],
            "override sampling.candidates: dr-grpo compares",
        ),
        (
            TASK + "algorithm: {name: ppo}\nsampling: {candidates: 1}\nreward: {terms: [{signal: a}]}",
            [],
            "cfg.yaml:3 standardise: group compares the candidates",
        ),
        (
            TASK
            + "algorithm: {name: policy-gradient}\nsampling: {candidates: 1}\ntrain: {prompts_per_step: 1}",
            [],
            "cfg.yaml:2 policy-gradient compares the responses of a step, and there is one",
        ),
        (TASK + "sampling:\n  temperature: 0", [], "cfg.yaml:3 a prompt's candidates would all be the same"),
        (TASK + "sampling: {top_k: 1}", [], "cfg.yaml:2 a prompt's candidates would all be the same"),
        (
            TASK + "sampling: {min_new_tokens: 7, max_new_tokens: 5}",
            [],
            "cfg.yaml:2 sampling.min_new_tokens (7) exceeds sampling.max_new_tokens (5)",
        ),
        (
            TASK + "algorithm: {minibatches: 3}",
            [],
            "cfg.yaml:2 algorithm.minibatches (3) must divide train.prompts_per_step (8)",
        ),
        (TASK + "algorithm: {kl_target: 3, kl_coefficient: 0}", [], "cfg.yaml:2 algorithm.kl_target adapts"),
        (
            TASK + "algorithm: {name: ppo, kl_estimate: k3}",
            [],
            "cfg.yaml:2 algorithm.kl_estimate: k3 is for a KL in the loss, and this one is in the reward",
        ),
        (
            TASK,
            ["algorithm.kl_placement=reward", "algorithm.kl_estimate=k3"],
            "override algorithm.kl_estimate: algorithm.kl_estimate: k3 is for a KL in the loss",
        ),
        (TASK + "train: {micro_batch: 7}", [], "cfg.yaml:2 train.micro_batch (7) must hold"),
        (TASK + "train: {warmup_steps: 101}", [], "cfg.yaml:2 train.warmup_steps (101) exceeds train.steps"),
        (TASK + "sft: {warmup_steps: 1001}", [], "cfg.yaml:2 sft.warmup_steps (1001) exceeds sft.steps"),
        (TASK + "reward: {salience: {kind: column}}", [], "cfg.yaml:2 reward.salience.kind: column needs"),
        (TASK + "reward: {salience: {kind: span}}", [], "cfg.yaml:2 reward.salience.kind: span needs start"),
        (
            TASK + "reward: {salience: {kind: column, roles: [user]}}",
            ["data.salience_column=x"],
            "cfg.yaml:2 reward.salience.roles: not with kind: column, which names what counts wherever it stands",
        ),
        ("data: {task: qa, evaluation_split: test}", [], "cfg.yaml:1 data.task brings its own evaluation"),
        (
            "data: {source: x.csv, evaluation_split: test}\nmodel: {name: m}",
            [],
            "cfg.yaml:1 x.csv is a file without splits; set data.evaluation_source",
        ),
        (
            TASK + "reward: {salience: {kind: span, start: a, pattern: b}}",
            [],
            "cfg.yaml:2 reward.salience.kind: span needs start or end, or a pattern, and not both",
        ),
        (TASK + "sft: {scratch: {hidden: 100, heads: 3}}", [], "cfg.yaml:2 sft.scratch.hidden (100) must be"),
        (
            "data: {source: x.csv}\nmodel: {name: m}\ntrain: {evaluate_every: 5}",
            [],
            "cfg.yaml:3 train.evaluate_every needs data.evaluation_source",
        ),
        (
            TASK + "sampling:\n  vllm: {group_port: 5}",
            [],
            "cfg.yaml:3 sampling.vllm is for sampling.engine: vllm; set that, or remove sampling.vllm",
        ),
        (
            TASK + "sampling: {engine: vllm, dtype: bfloat16}",
            [],
            "cfg.yaml:2 sampling.dtype is for sampling.engine: policy; a vLLM server is started with its own",
        ),
        (
            TASK + "sampling: {dtype: bfloat16}\nmodel: {lora: {use_dora: true}}",
            [],
            "cfg.yaml:3 model.lora.use_dora: sampling.dtype merges the adapter for every rollout",
        ),
        (
            TASK + "sampling: {engine: vllm}\nmodel: {lora: {use_dora: true}}",
            [],
            "cfg.yaml:3 model.lora.use_dora: sampling.engine vllm takes plain LoRA adapters only",
        ),
        (
            TASK + "model:\n  name: x\n  lora:\n    path: y\n    r: 16",
            [],
            "cfg.yaml:6 model.lora.r: the adapter that model.lora.path leads to has settings of its own",
        ),
        (
            TASK + "sampling: {engine: vllm}\nmodel: {architecture: encoder-decoder}",
            [],
            "cfg.yaml:2 sampling.engine: vllm writes with causal models only",
        ),
        (
            TASK + "sampling: {engine: vllm, temperature: 0, candidates: 1}\nalgorithm: {name: ppo}\n"
            "reward: {terms: [{signal: a, standardise: none}]}",
            [],
            "cfg.yaml:2 sampling.engine: vllm is corrected by the probability that a token was drawn with",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused_before_a_model_loads(tmp_path, text, overrides, message):
    assert complaint(tmp_path, text, overrides).startswith(message)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("host:8000", "'host:8000' is no URL; it must be http:// or https:// and a host"),
        ("http://", "'http://' is no URL; it must be http:// or https:// and a host"),
        ("http://host:port", "no URL: Port could not be cast"),
        ("http://me:secret@host", "no user, password or query belongs in it"),
        ("http://host/?key=secret", "no user, password or query belongs in it"),
    ],
)
def test_a_servers_url_is_one_and_holds_no_secret(tmp_path, url, message):
    told = complaint(tmp_path, TASK + f"sampling:\n  engine: vllm\n  vllm:\n    base_url: {url!r}\n")
    assert told.startswith(f"cfg.yaml:5 sampling.vllm.base_url: {message}")
    assert "secret" not in told


def test_every_conflict_is_told_even_when_two_concern_one_key(tmp_path):
    text = TASK + "sampling: {candidates: 1}\nreward: {terms: [{signal: a}]}\n"
    assert len(complaint(tmp_path, text).splitlines()) == 2


def test_an_action_without_a_limit_keeps_the_default_limit(tmp_path):
    watch = load(tmp_path, TASK + "watch: {length: {action: stop}, kl: {limit: null}}\n").watch
    assert (watch.length.limit, watch.length.action, watch.kl.limit) == (3.0, "stop", None)


def test_a_dumped_config_loads_back_equal(tmp_path):
    options = (
        "{a: '1e-4', c: '12:30', d: 'null', e: 1.0e-9, f: [true, 'no', null, 1, 1.0], g: 'é🎈', h: '010'}"
    )
    overrides = [
        "data.task=qa",
        f"reward.terms=[{{signal: x, options: {options}}}]",
        "model.lora.target_modules=[q, v]",
        "run.directory='2026-01-01'",
    ]
    config = Config.load(None, overrides)
    config.dump(tmp_path / "config.yaml")
    assert Config.load(tmp_path / "config.yaml") == config
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["run"]["directory"] == "2026-01-01"


def test_the_reference_is_a_config_file_of_all_keys_at_their_defaults(tmp_path):
    path = tmp_path / "reference.yaml"
    path.write_text(reference())
    assert Config.load(path, ["data.task=slots"]) == Config.load(None, ["data.task=slots"])
    assert read_document(path).data["watch"]["entropy"]["limit"] == 0.1
    assert "# Expected: an integer of at least 1.\n  candidates: 8" in reference()
    assert "#  r: 16" in reference()


def sections(model):
    for field in model.model_fields.values():
        yield field
        inner = field.get_default(call_default_factory=True)
        if isinstance(inner, Section):
            yield from sections(type(inner))


def test_every_key_says_what_it_means():
    assert [field for field in sections(Config) if not field.description] == []


@pytest.fixture
def recursion_limit_of_python():
    """Some libraries raise it, and a pattern that is nested too deeply by Python's own is then none."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize("pattern", ["[", "x{9999999999}", "(?z)", "(" * 500 + ")" * 500])
@pytest.mark.usefixtures("recursion_limit_of_python")
def test_a_pattern_that_is_none_is_said_where_it_stands(tmp_path, pattern):
    text = f"{TASK}reward:\n  salience:\n    kind: span\n    pattern: '{pattern}'\n"
    assert complaint(tmp_path, text).startswith(
        f"cfg.yaml:5 reward.salience.pattern: {pattern!r} is no regular"
    )


@pytest.mark.parametrize("key", ["run.directory", "reward.preset", "data.source"])
def test_a_name_that_is_too_long_for_a_file_is_refused(key):
    long = "x" * 300 + {"run.directory": "", "reward.preset": ".yaml", "data.source": ".csv"}[key]
    config = Config.load(
        None, ["model.name=m", *["data.task=slots"] * (key != "data.source"), f"{key}={long}"]
    )
    with pytest.raises(InputError, match=rf"^{key}: "):
        check_paths(config)


def test_paths_are_checked_before_a_model_loads(tmp_path):
    def with_run(directory, **data):
        overrides = [f"run.directory={directory}", "model.name=m"]
        return Config.load(None, overrides + [f"data.{key}={value}" for key, value in data.items()])

    (tmp_path / "file").write_text("")
    check_paths(with_run(tmp_path / "new" / "run", task="slots"))
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match=r"run\.directory: .*file is a file; choose another directory"):
        check_paths(with_run(tmp_path / "file" / "run", task="slots"))
    with pytest.raises(InputError, match=r"data\.source: no such file '.*none\.jsonl\.gz'"):
        check_paths(with_run(tmp_path, source=tmp_path / "none.jsonl.gz"))
    preset = f"reward.preset={tmp_path / 'none.yaml'}"
    without = Config.load(None, ["data.task=slots", f"run.directory={tmp_path}", preset])
    with pytest.raises(InputError, match=r"reward\.preset: no such file '.*none\.yaml'"):
        check_paths(without)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a directory that even root cannot write in")
def test_an_unwritable_directory_is_refused_and_a_full_disk_told_apart(monkeypatch):
    with pytest.raises(InputError, match=r"run\.directory: cannot write in /proc"):
        check_paths(Config.load(None, ["data.task=slots", "run.directory=/proc/run"]))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc:#- 1e", min_size=1), inner, max_size=3)
    ),
    max_leaves=7,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text("abcno-1", min_size=1), plain, max_size=5))
def test_what_is_written_reads_back_equal(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    path.write_text(write_document(data), encoding="utf-8", newline="")
    assert read_document(path).data == data


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text("{}[]:,&*!|>'\"%@`-?# \n\tabdet01.e_", max_size=80).map(str.encode))
def test_arbitrary_bytes_are_read_or_refused_in_words(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "cfg.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        Config.load(path)
    assert "cfg.yaml" in str(caught.value)


def test_a_number_that_is_not_finite_is_refused_also_inside_options():
    with pytest.raises(InputError, match=r"reward\.terms\.0\.options: got .*NaN.*, expected a mapping"):
        Config.load(None, ["data.task=qa", "reward.terms=[{signal: a, options: {x: .nan}}]"])
