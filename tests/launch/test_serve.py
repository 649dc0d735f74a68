"""What clients get: the official client of OpenAI against a server on a port, whose texts are known otherwise too."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import re
import threading
import time

import httpx
import jax
import numpy as np
import openai
import pytest

from configs import schema
from model.generate import Sampling
from tests.serving import LIMITS, TEMPLATE, running, tiny_serving, words_tokenizer
from train.data.sections import Corpus
from train.data.tokenizer import Tokenizer, make_tokenizer
from train.writing import write

pytestmark = pytest.mark.end_to_end

PROMPT = " the cat sat on"
WORDS_ONLY = {"0": -100, "1": -100}  # Neither the end nor the unknown word.


def connect(url, key="none", retries=0):
    plain = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=retries, http_client=plain)


@pytest.fixture(scope="module")
def serving():
    return tiny_serving()


@pytest.fixture(scope="module")
def url(serving):
    with running(serving) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with connect(url) as client:
        yield client


@contextlib.contextmanager
def held(serving):
    """The engine computes nothing meanwhile, unless told to by the event that is given."""
    gate, engine = threading.Event(), serving.engine._engine
    step = type(engine).step
    engine.step = lambda: gate.wait(300) and step(engine)
    try:
        yield gate
    finally:
        gate.set()
        del engine.step


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def complete(client, **settings):
    settings = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "seed": 3} | settings
    return client.completions.create(**settings)


def log_probabilities(serving, ids):
    """The network's own, by a full pass, of each next token [T-1,V]."""
    logits_TV = serving.module.apply({"params": serving.params}, np.array([ids], np.int32))[0]
    return np.asarray(jax.nn.log_softmax(logits_TV))[:-1]


def test_a_text_is_continued(client, serving):
    answer = complete(client)
    (choice,) = answer.choices
    known = {serving.tokenizer.token_text(id) for id in range(serving.tokenizer.size)}
    assert {f" {word}" for word in choice.text.split()} <= known
    assert choice.finish_reason in ("stop", "length")
    assert (answer.object, answer.model) == ("text_completion", "tiny")
    assert answer.usage.prompt_tokens == len(serving.tokenizer.prompt(PROMPT))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("stop", [None, [" a", " on"]])
def test_a_stream_says_what_the_whole_answer_says(client, stop):
    settings = {"prompt": [PROMPT, " 猫"], "n": 2, "logprobs": 2, "echo": True, "stop": stop, "max_tokens": 40}
    whole = complete(client, **settings)
    texts, tokens, finish, usage = [""] * 4, [[] for _ in range(4)], [None] * 4, None
    for event in complete(client, **settings, stream=True, stream_options={"include_usage": True}):
        usage = event.usage
        for choice in event.choices:
            texts[choice.index] += choice.text
            values = choice.logprobs
            tokens[choice.index] += zip(
                values.tokens, values.token_logprobs, values.top_logprobs, values.text_offset, strict=True
            )
            finish[choice.index] = choice.finish_reason
    assert usage == whole.usage
    for choice in whole.choices:
        values = choice.logprobs
        in_one = zip(values.tokens, values.token_logprobs, values.top_logprobs, values.text_offset, strict=True)
        assert tokens[choice.index] == list(in_one)
        assert (texts[choice.index], finish[choice.index]) == (choice.text, choice.finish_reason)


def test_an_answer_in_a_chat_is_streamed_as_it_is_given_whole(client, serving):
    settings = {
        "model": "tiny", "messages": [{"role": "user", "content": "the dog"}], "max_completion_tokens": 30, "seed": 1,
        "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    whole = client.chat.completions.create(**settings)
    text, tokens, finish, role = "", [], None, None
    for event in client.chat.completions.create(**settings, stream=True):
        (choice,) = event.choices
        text, role = text + (choice.delta.content or ""), role or choice.delta.role
        tokens += choice.logprobs.content if choice.logprobs else []
        finish = choice.finish_reason or finish
    (choice,) = whole.choices
    assert (text, finish, role) == (choice.message.content, choice.finish_reason, "assistant")
    assert [token.model_dump() for token in tokens] == [token.model_dump() for token in choice.logprobs.content]
    said = b"".join(bytes(token.bytes) for token in tokens).decode()
    assert said == text
    prompt = serving.tokenizer.conversation([{"role": "user", "content": "the dog"}])
    assert whole.usage.prompt_tokens == len(prompt)
    # The same tokens through the other door; only the space before the first word is the chat's own affair.
    assert complete(client, prompt=prompt, max_tokens=30, seed=1).choices[0].text.lstrip() == text.lstrip()


def test_log_probabilities_are_those_of_a_full_pass(client, serving):
    (choice,) = complete(client, echo=True, logprobs=3, temperature=1.3, top_p=0.9).choices
    values, ids = choice.logprobs, serving.tokenizer.prompt(PROMPT)
    ids = ids + [serving.tokenizer.encode(token)[0] for token in values.tokens[len(ids) :] if token.startswith(" ")]
    expected_TV = log_probabilities(serving, ids)
    assert values.token_logprobs[0] is None
    got = np.array(values.token_logprobs[1 : len(ids)])
    np.testing.assert_allclose(got, expected_TV[np.arange(len(ids) - 1), ids[1:]], rtol=1e-4, atol=1e-4)
    for row, top in zip(expected_TV, values.top_logprobs[1 : len(ids)], strict=True):
        best = sorted(top.values(), reverse=True)[:3]
        np.testing.assert_allclose(best, np.sort(row)[::-1][:3], rtol=1e-4, atol=1e-4)
    words = [(token, at) for token, at in zip(values.tokens, values.text_offset, strict=True) if token.startswith(" ")]
    assert all(choice.text[at:].startswith(token) for token, at in words)


def test_a_prompt_can_be_scored_alone(client, serving):
    (choice,) = complete(client, echo=True, logprobs=0, max_tokens=0).choices
    assert choice.text == PROMPT
    assert len(choice.logprobs.tokens) == len(serving.tokenizer.prompt(PROMPT))
    assert complete(client, max_tokens=0).choices[0].text == ""


def test_a_seed_writes_the_same_alone_and_among_others(client):
    alone = [complete(client, seed=seed, temperature=1.5).choices[0].text for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(lambda seed: complete(client, seed=seed, temperature=1.5).choices[0].text, range(8)))
    assert crowd == alone
    assert len(set(alone)) > 1
    several = complete(client, seed=2, n=3, temperature=1.5)
    assert [choice.text for choice in several.choices] == alone[2:5]


def test_without_a_seed_texts_differ(client):
    assert len({complete(client, seed=None, temperature=1.5).choices[0].text for _ in range(4)}) > 1


def test_the_best_of_several_is_the_likeliest_by_its_tokens(client):
    several = complete(client, n=4, logprobs=0)
    means = {choice.text: np.mean(choice.logprobs.token_logprobs) for choice in several.choices}
    best = complete(client, n=2, best_of=4, logprobs=0)
    assert [choice.index for choice in best.choices] == [0, 1]
    assert [choice.text for choice in best.choices] == sorted(means, key=lambda text: -means[text])[:2]
    assert best.usage == several.usage


def test_a_stop_string_may_span_tokens_and_is_not_part_of_the_text(client):
    ends = complete(client, logit_bias=WORDS_ONLY, max_tokens=30)
    text = ends.choices[0].text
    stop = text[len(text) // 2 - 3 : len(text) // 2 + 3]
    cut = complete(client, logit_bias=WORDS_ONLY, max_tokens=30, stop=["never", stop], logprobs=0)
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert "".join(cut.choices[0].logprobs.tokens).startswith(cut.choices[0].text)
    assert max(cut.choices[0].logprobs.text_offset) < len(cut.choices[0].text)
    assert cut.usage.completion_tokens < ends.usage.completion_tokens


def test_settings_of_choosing_reach_the_engine(client, serving):
    greedy = complete(client, temperature=0, logprobs=1).choices[0].logprobs
    assert all(
        logprob == max(top.values()) for logprob, top in zip(greedy.token_logprobs, greedy.top_logprobs, strict=True)
    )
    assert (
        complete(client, extra_body={"top_k": 1}, seed=9).choices[0].text
        == complete(client, temperature=0).choices[0].text
    )
    dog = serving.tokenizer.encode(" dog")[0]
    assert complete(client, logit_bias={str(dog): 100}, max_tokens=3).choices[0].text == " dog dog dog"
    once = complete(client, temperature=0, logit_bias={str(dog): 2}, frequency_penalty=2, max_tokens=12)
    assert "dog dog dog" not in once.choices[0].text


WRONG = [
    ("completions", {}, "prompt"),
    ("completions", {"prompt": 3}, "prompt"),
    ("completions", {"prompt": []}, "prompt"),
    ("completions", {"prompt": ["a", 3]}, "prompt.1"),
    ("completions", {"prompt": [10**6]}, "prompt"),
    ("completions", {"prompt": " a" * 97}, "prompt"),
    ("completions", {"prompt": " a", "max_tokens": 101}, "max_tokens"),
    ("completions", {"prompt": " a" * 60, "max_tokens": 80}, "max_tokens"),
    ("completions", {"prompt": " a", "max_tokens": -1}, "max_tokens"),
    ("completions", {"prompt": " a", "max_token": 1}, "max_token"),
    ("completions", {"prompt": " a", "temperature": "hot"}, "temperature"),
    ("completions", {"prompt": " a", "temperature": 2.1}, "temperature"),
    ("completions", {"prompt": " a", "top_p": 0}, "top_p"),
    ("completions", {"prompt": " a", "n": 13}, "n"),
    ("completions", {"prompt": " a", "n": 2, "best_of": 1}, "best_of"),
    ("completions", {"prompt": " a", "best_of": 2, "stream": True}, "best_of"),
    ("completions", {"prompt": " a", "stop": [3]}, "stop.0"),
    ("completions", {"prompt": " a", "stop": ""}, "stop"),
    ("completions", {"prompt": " a", "logit_bias": {"the": 1}}, "logit_bias.the"),
    ("completions", {"prompt": " a", "logit_bias": {"9999": 1}}, "logit_bias.9999"),
    ("completions", {"prompt": " a", "stream_options": {"include_usage": True}}, "stream_options"),
    ("completions", {"prompt": " a", "suffix": " b"}, "suffix"),
    ("completions", {"prompt": " a", "guided_regex": "("}, "guided_regex"),
    ("completions", {"prompt": " a", "response_format": {"type": "yaml"}}, "response_format.type"),
    ("completions", {"prompt": " a", "guided_regex": "a", "response_format": {"type": "text"}}, "guided_regex"),
    ("chat/completions", {"messages": []}, "messages"),
    ("chat/completions", {"messages": [{"role": "tool", "content": ""}]}, "messages.0.role"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages.0.content.0.type"),
    ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": []}, "tools"),
    ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "top_logprobs"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param"), WRONG)
def test_what_is_wrong_is_named(url, path, body, param):
    answer = httpx.post(f"{url}/v1/{path}", json=body, trust_env=False)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param in error["message"]


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as refused:
        complete(client, model="large")
    assert (refused.value.param, refused.value.code) == ("model", "model_not_found")


def test_what_is_no_json_or_too_long_is_refused(url):
    json = {"Content-Type": "application/json"}
    for body, headers, status in (
        (b'{"prompt', json, 400), (b'{"prompt": "\\ud800"}', json, 400), (b"\xff", json, 400), (b"[]", json, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415), (b'"' + b"a" * 20_000, json, 413),
    ):  # fmt: skip
        answer = httpx.post(f"{url}/v1/completions", content=body, headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error"), body[:10]


def test_more_than_can_wait_is_told_when_to_come_again(client, serving):
    with concurrent.futures.ThreadPoolExecutor() as pool, held(serving) as gate:
        waiting = pool.submit(complete, client, n=10)
        until(lambda: serving.engine.taken == 10)
        with pytest.raises(openai.RateLimitError) as refused:
            complete(client, n=3)
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        gate.set()
        assert len(waiting.result().choices) == 10


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slot(url, client, serving, stream):
    engine, steps = serving.engine._engine, threading.Semaphore(0)
    step = type(engine).step
    engine.step = lambda: step(engine) if steps.acquire(timeout=60) else []
    try:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        body = {"prompt": PROMPT, "logit_bias": WORDS_ONLY, "max_tokens": 100, "n": 2, "stream": stream}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        until(lambda: serving.engine.taken == 2)
        steps.release(3)  # Of the thirteen that the texts need.
        until(lambda: serving.engine.stats.active == 2)
        if stream:
            answer = connection.getresponse()
            assert answer.readline().startswith(b"data: {")
            answer.close()
        connection.close()
        # The engine is told, and hears it between two steps.
        until(lambda: serving.engine._inbox or not serving.engine.taken)
        steps.release(2)
        until(lambda: serving.engine.taken == serving.engine.stats.active == 0)
    finally:
        del engine.step
        steps.release(100)
    assert complete(client).choices[0].text


def test_what_takes_too_long_is_given_up(serving):
    hasty = dataclasses.replace(serving, limits=dataclasses.replace(LIMITS, seconds=0.2))
    # Not closed with the server's engine: that of the other tests goes on.
    with contextlib.ExitStack() as stack:
        stack.enter_context(held(serving))
        hasty = dataclasses.replace(hasty, engine=Lent(serving.engine))
        with connect(stack.enter_context(running(hasty))) as client, pytest.raises(openai.APIStatusError) as late:
            complete(client)
    assert late.value.status_code == 408
    until(lambda: serving.engine.taken == 0)


class Lent:
    """An engine's thread that another server uses too, and does not stop."""

    def __init__(self, thread):
        self.open, self.failure, self.stopping = thread.open, None, False

    def refuse(self):
        pass

    cut = close = refuse


def test_the_metrics_count(client, url):
    def counts():
        lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    before, answer, after = counts(), complete(client), counts()

    def grown(name):
        return after[f"seq2see_{name}"] - before.get(f"seq2see_{name}", 0)

    assert grown("prompt_tokens_total") == answer.usage.prompt_tokens
    assert grown("completion_tokens_total") == answer.usage.completion_tokens
    assert grown("generated_total") >= answer.usage.completion_tokens
    assert grown("time_to_first_token_seconds_count") == grown("request_seconds_count") == 1
    assert grown('requests_total{path="/v1/completions",status="200"}') == 1
    assert after["seq2see_slots"] == LIMITS.slots
    assert after["seq2see_cache_capacity"] >= LIMITS.slots * LIMITS.length


def test_a_key_is_asked_for(serving):
    lent = dataclasses.replace(serving, engine=Lent(serving.engine))
    with running(lent, key="s3cret") as url:
        with connect(url, "s3cret") as client:
            assert complete(client).choices
        with connect(url, "wrong") as client, pytest.raises(openai.AuthenticationError):
            complete(client)


def test_a_checkpoint_without_a_template_says_so(serving):
    plain = dataclasses.replace(serving, engine=Lent(serving.engine), tokenizer=words_tokenizer(chat=None))
    with running(plain) as url, connect(url) as client, pytest.raises(openai.BadRequestError, match="--chat_template"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])


def test_tokens_are_counted_without_having_the_tokenizer(url, serving):
    def post(path, body):
        return httpx.post(f"{url}/{path}", json=body, trust_env=False).json()

    tokenizer = serving.tokenizer
    info = httpx.get(f"{url}/tokenizer_info", trust_env=False).json()
    assert post("tokenize", {"prompt": info["eos_token"], "add_special_tokens": False})["tokens"] == [0]
    assert post("tokenize", {"prompt": PROMPT})["tokens"] == tokenizer.prompt(PROMPT)
    ids = post("tokenize", {"prompt": PROMPT, "add_special_tokens": False})["tokens"]
    assert ids == tokenizer.encode(PROMPT)
    assert post("detokenize", {"tokens": ids}) == {"prompt": PROMPT}
    assert post("detokenize", {"tokens": [10**6]})["error"]["param"] == "tokens"


def test_what_is_served_is_what_launch_sample_writes(client, serving):
    texts = [complete(client, seed=seed, max_tokens=16).choices[0].text for seed in range(3)]
    written = write(
        serving.module, serving.params, serving.tokenizer, [PROMPT] * 3, Sampling(), max_tokens=16, seeds=range(3)
    )
    assert texts == [sample.text for sample in written]


def test_translations_are_served():
    serving = tiny_serving(network="encoder_decoder")
    arguments = (serving.module, serving.params, serving.tokenizer, [PROMPT, " 猫"], Sampling(temperature=0))
    expected = [sample.text for sample in write(*arguments, max_tokens=12, seeds=[0, 0])]
    with running(serving) as url, connect(url) as client:
        answer = complete(client, prompt=[PROMPT, " 猫"], temperature=0, max_tokens=12)
        assert [choice.text for choice in answer.choices] == expected
        assert answer.usage.prompt_tokens == sum(len(serving.tokenizer.source(text)) for text in (PROMPT, " 猫"))
        with pytest.raises(openai.BadRequestError, match="echo"):
            complete(client, echo=True)


def test_what_is_written_is_what_a_grammar_says():
    characters = make_tokenizer(schema.Tokenizer(source="bytes"), Corpus([], [], "", ""))
    serving = tiny_serving(tokenizer=Tokenizer.from_json(characters.to_json(), chat=TEMPLATE))
    value = {"type": "object", "properties": {"ok": {"enum": ["猫", "ab"]}}, "required": ["ok"]}
    form = {"name": "answer", "schema": {**value, "additionalProperties": False}, "strict": True}
    blank = {str(id): -100 for id in characters.encode(" \t\r\n")}  # JSON may have as much of it as it likes.
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "n": 3, "seed": 0, "logit_bias": blank}
    with running(serving) as url, connect(url) as client:
        written = complete(client, n=4, extra_body={"guided_regex": "(the|a) (cat|dog){2}[.]"})
        assert all(re.fullmatch("(the|a) (cat|dog){2}[.]", choice.text) for choice in written.choices)
        assert {choice.finish_reason for choice in written.choices} == {"stop"}
        answers = client.chat.completions.create(**asked, response_format={"type": "json_schema", "json_schema": form})
        assert {json.loads(choice.message.content)["ok"] for choice in answers.choices} <= {"猫", "ab"}
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                **asked, response_format={"type": "json_schema", "json_schema": {**form, "schema": {"type": "cat"}}}
            )
    assert refused.value.param == "response_format"
