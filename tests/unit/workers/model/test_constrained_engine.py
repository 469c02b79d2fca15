"""A model of random weights at temperature 1 whose answers keep to their forms: batched, chunked, preempted, moved."""

import json
import re

import jsonschema
import pytest

from baleen.budget import Budget
from baleen.clock import SystemClock
from baleen.config import CacheConfig, EngineConfig, ModelConfig, RankConfig
from baleen.constraint import Constraint
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from baleen.text.grammars import Grammars
from baleen.text.tokenizer import load_tokenizer
from tests.support.tiny_checkpoint import make_tiny
from tests.unit.workers.model.conftest import load_whole
from workers.cache.blocks import BlockCache
from workers.engine.batch import FinishReason
from workers.engine.budget_mask import BudgetMask
from workers.engine.grammar_mask import GrammarMask
from workers.engine.scheduler import Scheduler
from workers.engine.submission import expand_submission
from workers.model.runner import Runner
from workers.parallel.local import LocalExchange

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a", "bc", 7]},
        "list": {"type": "array", "items": {"type": "integer", "minimum": -20, "maximum": 20}, "maxItems": 3},
        "text": {"type": "string", "maxLength": 6},
        "good": {"type": "boolean"},
    },
    "required": ["kind", "list", "good"],
    "additionalProperties": False,
}
JSON = Constraint(kind="json_schema", text=json.dumps(SCHEMA))
DIGITS = Constraint(kind="regex", text="[0-9]{4}-(ab|cd){0,2}x")
GBNF = Constraint(kind="grammar", text='root ::= "(" [a-c]? ")"')
PROMPT = [3 + byte for byte in b"Say something in JSON. " * 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = make_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")
    return load_whole(directory), load_tokenizer(directory)


class Engine:
    """Scheduler, runner and grammars over one set of weights."""

    def __init__(self, model, *, num_blocks=64, chunk=2048):
        self.weights, self.tokenizer = model
        spec = self.weights.spec
        self.grammars = Grammars(self.tokenizer, vocab_size=spec.vocab_size, eos_token_ids=spec.eos_token_ids)
        config = RankConfig(
            model=ModelConfig(path=""),
            cache=CacheConfig(num_blocks=num_blocks),
            engine=EngineConfig(audit="step", max_chunk_tokens=chunk),
        )
        self.scheduler = Scheduler(config.engine, BlockCache(num_blocks, b"test"), SystemClock(), max_context=1024)
        self.runner = Runner(self.weights, config, LocalExchange(spec.num_experts))
        self.tokens = {}
        self.ends = {}

    def submit(self, name, constraint, prompt=PROMPT, *, delivered=(), **sampling):
        params = SamplingParams(constraint=constraint, **{"max_tokens": 200, "seed": 11, **sampling})
        masks = []
        if constraint is not None:
            masks = [GrammarMask(self.grammars.matcher(constraint), self.grammars, params) for _ in range(params.n)]
        if params.budget is not None:
            others = masks or [None] * params.n
            masks = [BudgetMask(params.budget, self.tokenizer, other) for other in others]
        for token in delivered if masks else ():
            masks[0].accept(token)
        spec = self.weights.spec
        requests = expand_submission(
            RequestId(name),
            [*prompt, *delivered],
            params,
            vocab_size=spec.vocab_size,
            eos_token_ids=spec.eos_token_ids,
            num_delivered=len(delivered),
            token_masks=masks,
        )
        self.scheduler.submit_all(requests)

    def run(self):
        while (batch := self.scheduler.schedule()) is not None:
            self.scheduler.commit(batch, self.runner.run(batch))
            for output in self.scheduler.take_outputs():
                key = output.request_id, output.index
                self.tokens.setdefault(key, []).extend(token.token_id for token in output.tokens)
                if output.finish is not None:
                    self.ends[key] = output.finish, output.detail
        return self

    def text(self, name, index=0):
        """The answer, which ended by itself."""
        assert self.ends[name, index] == (FinishReason.STOP, "")
        return self.tokenizer.decode(self.tokens[name, index][:-1])


def require_kept(constraint, text):
    if constraint is JSON:
        jsonschema.validate(json.loads(text), SCHEMA)
    elif constraint is DIGITS:
        assert re.fullmatch(DIGITS.text, text)
    else:
        assert re.fullmatch(r"\([a-c]?\)", text)


FORMS = {"json": JSON, "digits": DIGITS, "gbnf": GBNF}


@pytest.fixture(scope="module")
def alone(model):
    """Tokens of each form alone, for several seeds."""
    engine = Engine(model)
    for name, constraint in FORMS.items():
        for seed in range(2):
            engine.submit(f"{name}{seed}", constraint, seed=seed)
            engine.run()
    return engine


def test_every_answer_keeps_to_its_form(alone):
    for name, constraint in FORMS.items():
        for seed in range(2):
            require_kept(constraint, alone.text(f"{name}{seed}"))
    assert len({alone.text(f"json{seed}") for seed in range(2)}) == 2


@pytest.mark.parametrize(("num_blocks", "chunk"), [(64, 2048), (64, 7), (5, 64)], ids=["whole", "chunks", "preempted"])
def test_answers_are_the_same_in_a_mixed_batch(model, alone, num_blocks, chunk):
    engine = Engine(model, num_blocks=num_blocks, chunk=chunk)
    for seed in range(2):
        for name, constraint in FORMS.items():
            engine.submit(f"{name}{seed}", constraint, seed=seed)
        engine.submit(f"free{seed}", None, max_tokens=70, seed=seed, ignore_eos=True)
    engine.run()
    assert {key: tokens for key, tokens in engine.tokens.items() if "free" not in key[0]} == alone.tokens
    assert (engine.scheduler.tallies.preemptions > 0) is (num_blocks == 5)


def test_a_request_without_a_form_is_what_it_was(model):
    engine, other = Engine(model), Engine(model)
    for seed in range(2):
        engine.submit(f"free{seed}", None, max_tokens=20, seed=seed)
        other.submit(f"free{seed}", None, max_tokens=20, seed=seed)
        engine.submit(f"json{seed}", JSON, seed=seed)
    assert {key: tokens for key, tokens in engine.run().tokens.items() if "free" in key[0]} == other.run().tokens


def test_completions_of_one_request_each_keep_to_it(model):
    engine = Engine(model)
    engine.submit("r", JSON, n=2)
    engine.run()
    texts = {engine.text("r", index) for index in range(2)}
    assert len(texts) == 2
    for text in texts:
        require_kept(JSON, text)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_an_answer_that_moves_goes_on_within_its_form(model, alone, share):
    whole = alone.tokens["json1", 0]
    delivered = whole[: int(len(whole) * share)]
    engine = Engine(model)
    engine.submit("json1", JSON, delivered=delivered, seed=1)
    engine.run()
    assert delivered + engine.tokens["json1", 0] == whole


def test_max_tokens_ends_an_answer_wherever_it_is(model):
    engine = Engine(model)
    engine.submit("r", JSON, max_tokens=5)
    engine.run()
    assert engine.ends["r", 0] == (FinishReason.LENGTH, "") and len(engine.tokens["r", 0]) == 5


def test_bias_penalties_and_ends_stay_within_the_form(model):
    engine = Engine(model)
    space, eos = 3 + ord(" "), engine.weights.spec.eos_token_ids[0]
    bias = {space: 100.0, eos: 100.0, 3 + ord("0"): -100.0}
    engine.submit("biased", JSON, logit_bias=bias, repetition_penalty=9.0, presence_penalty=2.0, temperature=2.0)
    engine.submit("late", DIGITS, min_tokens=150, ignore_eos=True, logit_bias={3 + ord("x"): 100.0})
    engine.submit("zeros", Constraint(kind="regex", text="0{5}"), logit_bias={3 + ord("0"): -100.0})
    engine.run()
    require_kept(JSON, engine.text("biased"))
    require_kept(DIGITS, engine.text("late"))
    assert engine.text("zeros") == "00000"


def test_thinking_is_free_and_the_answer_keeps_to_its_form(model):
    tags = Constraint(kind="json_schema", text=JSON.text, after="</think>")
    engine = Engine(model)
    delivered = engine.tokenizer.encode("hm ä {</think>")
    engine.submit("r", tags, delivered=delivered)
    engine.submit("thinks", tags, max_tokens=40)
    engine.run()
    require_kept(JSON, engine.text("r"))
    assert engine.ends["thinks", 0][0] is FinishReason.LENGTH


@pytest.mark.parametrize("constraint", [None, Constraint(kind="json_schema", text=JSON.text, after="</think>")])
def test_thinking_ends_with_its_budget_alone_or_moved(model, constraint):
    asked = {"budget": Budget(tokens=9, end="</think>"), "logit_bias": {3 + ord("<"): -100.0}, "max_tokens": 120}
    engine = Engine(model)
    engine.submit("r", constraint, **asked)
    whole = engine.run().tokens["r", 0]
    end = len(engine.tokenizer.encode("</think>"))
    thought, tag, rest = engine.tokenizer.decode(whole).partition("</think>")
    # a character may have to be finished
    assert tag and 9 <= whole.index(engine.tokenizer.encode(tag)[0]) <= 12 and len(thought.encode()) <= 20
    if constraint is not None:
        require_kept(JSON, rest.removesuffix("<｜end▁of▁sentence｜>"))
    for place in (4, 9, 10, 9 + end, 15):
        moved = Engine(model)
        moved.submit("r", constraint, delivered=whole[:place], **asked)
        assert whole[:place] + moved.run().tokens["r", 0] == whole


def test_a_budget_that_is_not_spent_changes_nothing(model):
    engine, other = Engine(model), Engine(model)
    engine.submit("r", None, max_tokens=20, budget=Budget(tokens=20, end="</think>"))
    other.submit("r", None, max_tokens=20)
    assert engine.run().tokens == other.run().tokens


def test_a_wall_ends_one_request_and_says_so(model):
    engine = Engine(model)
    engine.submit("walled", DIGITS, delivered=[3 + ord("q")])
    engine.submit("good", JSON)
    engine.run()
    finish, detail = engine.ends["walled", 0]
    assert finish is FinishReason.DEAD_END and "the constraint allows no token" in detail
    require_kept(JSON, engine.text("good"))
