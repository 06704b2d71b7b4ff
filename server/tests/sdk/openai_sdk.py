"""Drives the real server with the unmodified `openai` package.

HALYARD names the binary, HALYARD_ARGS further flags of `serve`. Runs from the repository's root, prints a
line a check, and ends with 1 at the first that fails.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import urllib.request

import openai
from openai import AsyncOpenAI, OpenAI

MODEL = "testdata/models/llama"
GOLDEN = json.load(open(f"{MODEL}/golden.json"))["prompts"]
KEY = "secret"
CHAT = [{"role": "system", "content": ""}, {"role": "user", "content": "Where does the river go?"}]
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Server:
    """The binary, from its start to its last line."""

    def __init__(self, *flags):
        command = [os.environ.get("HALYARD", "target/debug/halyard"), "serve", MODEL]
        command += ["--host", "127.0.0.1", "--port", "0", "--dtype", "float32"]
        command += [*flags, *os.environ.get("HALYARD_ARGS", "").split()]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"on (http://\S+)", line):
                self.url = found[1]
                return
        raise SystemExit("the server did not start:\n" + "".join(self.lines))

    def client(self, kind=OpenAI, **options):
        options = {"api_key": KEY, "max_retries": 0, "timeout": 60} | options
        return kind(base_url=f"{self.url}/v1", **options)

    def get(self, path):
        with urllib.request.urlopen(self.url + path) as response:
            return response.read().decode()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        _, rest = self.process.communicate(timeout=30)
        return self.process.returncode, rest


def wait_until(what, condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


def load(server):
    return json.loads(server.get("/load"))["server_load"]


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


@check
def models(server):
    client = server.client()
    assert [card.id for card in client.models.list()] == ["tiny", "org/tiny"]
    assert client.models.retrieve("org/tiny").max_model_len == 512
    assert raises(openai.NotFoundError, lambda: client.models.retrieve("none")).status_code == 404


@check
def keys(server):
    error = raises(openai.AuthenticationError, server.client(api_key="wrong").models.list)
    assert error.body["code"] == 401 and error.body["message"], error.body
    assert server.client(api_key="other").models.list()


@check
def golden_completions(server):
    client = server.client()
    for prompt in GOLDEN:
        for given in (prompt["text"], prompt["input_ids"]):
            answer = client.completions.create(
                model="tiny", prompt=given, max_tokens=len(prompt["generated"]), temperature=0,
                extra_body={"ignore_eos": True, "return_token_ids": True},
            )
            choice = answer.choices[0]
            assert choice.prompt_token_ids == prompt["input_ids"], choice
            assert choice.token_ids == prompt["generated"], (choice.token_ids, prompt["generated"])
            assert choice.finish_reason == "length"
            assert answer.usage.prompt_tokens == len(prompt["input_ids"])
            assert answer.usage.completion_tokens == len(prompt["generated"])


@check
def several_prompts(server):
    prompts = [prompt["input_ids"] for prompt in GOLDEN]
    answer = server.client().completions.create(
        model="tiny", prompt=prompts, max_tokens=4, temperature=0, extra_body={"return_token_ids": True}
    )
    for choice, prompt in zip(answer.choices, GOLDEN, strict=True):
        assert choice.token_ids == prompt["generated"][:4]


@check
def streamed_completion(server):
    client = server.client()
    prompt = GOLDEN[0]
    options = {"model": "tiny", "prompt": prompt["text"], "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ))
    assert len(chunks) == 13, "a chunk a token, and one with the usage"
    assert "".join(c.choices[0].text for c in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


@check
def chat(server):
    client = server.client()
    options = {"model": "org/tiny", "messages": CHAT, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**options)
    message = whole.choices[0].message
    assert message.role == "assistant" and message.content
    assert whole.model == "org/tiny" and whole.usage.total_tokens == whole.usage.prompt_tokens + 8
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert client.chat.completions.create(model="tiny", messages=parts, max_completion_tokens=2)


@check
def stream_helper(server):
    client = server.client()
    # The end of the sequence is what the model wants most, and may not have before its fifth token.
    options = {"max_tokens": 50, "logit_bias": {"1023": 100}, "extra_body": {"min_tokens": 4}}
    with client.chat.completions.stream(model="tiny", messages=CHAT, **options) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(pieces) == final.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


@check
def choices_and_seeds(server):
    client = server.client()
    options = {"model": "tiny", "messages": CHAT, "max_tokens": 8, "temperature": 1.5, "n": 3}
    texts = lambda answer: [choice.message.content for choice in answer.choices]
    first = texts(client.chat.completions.create(**options, seed=7))
    assert first == texts(client.chat.completions.create(**options, seed=7))
    assert len(set(first)) == 3, "each choice draws for itself"
    assert first != texts(client.chat.completions.create(**options, seed=99))
    assert first[1] == texts(client.chat.completions.create(**options | {"n": 1}, seed=8))[0]
    streams = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(**options, seed=7, stream=True):
        choice = chunk.choices[0]
        streams[choice.index] += choice.delta.content or ""
    assert list(streams.values()) == first
    best = client.completions.create(model="tiny", prompt="a", best_of=4, n=2, max_tokens=4, seed=3)
    assert len(best.choices) == 2


@check
def stops(server):
    client = server.client()
    prompt = GOLDEN[0]
    options = {"model": "tiny", "prompt": prompt["text"], "max_tokens": 16, "temperature": 0}
    text = client.completions.create(**options, extra_body={"ignore_eos": True}).choices[0].text
    stop = text[4:7]
    for stream in (False, True):
        answer = client.completions.create(
            **options, stop=[stop, "never"], stream=stream, extra_body={"ignore_eos": True}
        )
        if stream:
            chunks = list(answer)
            found, last = "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0]
        else:
            found, last = answer.choices[0].text, answer.choices[0]
        assert found == text[: text.index(stop)], (found, text)
        assert last.finish_reason == "stop" and last.stop_reason == stop
    id = prompt["generated"][3]
    choice = client.completions.create(**options, extra_body={"stop_token_ids": [id]}).choices[0]
    assert choice.finish_reason == "stop" and choice.stop_reason == id


@check
def logprobs(server):
    client = server.client()
    options = {"model": "tiny", "messages": CHAT, "max_tokens": 3, "temperature": 0}
    answer = client.chat.completions.create(**options, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 3
    for entry in content:
        assert len(entry.top_logprobs) == 3 and entry.logprob == entry.top_logprobs[0].logprob
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
    prompt = GOLDEN[0]
    answer = client.completions.create(
        model="tiny", prompt=prompt["input_ids"], echo=True, max_tokens=0, logprobs=2, temperature=0
    )
    scored = answer.choices[0].logprobs
    assert scored.token_logprobs[0] is None and len(scored.tokens) == len(prompt["input_ids"])
    assert all(value < 0 for value in scored.token_logprobs[1:])
    assert answer.usage.completion_tokens == 0


@check
def biases(server):
    client = server.client()
    options = {"model": "tiny", "prompt": "a", "max_tokens": 3, "temperature": 0}

    def ids(extra_body={}, **more):
        extra_body = {"return_token_ids": True} | extra_body
        answer = client.completions.create(**options, **more, extra_body=extra_body)
        return answer.choices[0].token_ids

    assert ids(logit_bias={"5": 100}) == [5, 5, 5]
    assert ids({"allowed_token_ids": [9]}) == [9, 9, 9]
    both = {"logit_bias": {"5": 100, "6": 100}, "frequency_penalty": 2, "presence_penalty": 2}
    assert set(ids({"repetition_penalty": 2, "top_k": 5, "min_p": 0.01}, **both)[:2]) == {5, 6}


@check
def refusals(server):
    client = server.client()
    create = lambda **options: lambda: client.chat.completions.create(
        **{"model": "tiny", "messages": CHAT} | options
    )
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for options, param in [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"tools": tools}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"guided_regex": "a"}}, "guided_regex"),
        ({"n": 2, "temperature": 0}, "n"),
    ]:
        error = raises(openai.BadRequestError, create(**options))
        assert error.body["param"] == param and error.body["code"] == 400, error.body
    assert raises(openai.NotFoundError, create(model="gpt")).body["param"] == "model"
    error = raises(openai.BadRequestError, create(messages=[{"role": "user", "content": "x " * 2000}]))
    assert "maximum context length is 512 tokens" in error.message
    error = raises(openai.BadRequestError, create(stream=True, temperature=-1))
    assert error.body["message"] == "temperature must be non-negative, got -1.0."


@check
def clients_that_go_away(server):
    long = {"model": "tiny", "prompt": "a", "max_tokens": 500, "extra_body": {"ignore_eos": True}}
    stream = server.client().completions.create(**long, stream=True)
    next(iter(stream))
    assert load(server) == 1
    stream.close()
    wait_until("the end of a left stream", lambda: load(server) == 0)

    raises(openai.APITimeoutError, lambda: server.client(timeout=0.05).completions.create(**long, n=8))
    wait_until("the end of a left request", lambda: load(server) == 0)


@check
def many_at_once(server):
    """Each of 64 streams gets exactly the tokens it would get alone."""

    async def one(client, prompt):
        pieces = []
        stream = await client.completions.create(
            model="tiny", prompt=prompt["input_ids"], max_tokens=len(prompt["generated"]), temperature=0,
            stream=True, extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        async for chunk in stream:
            pieces += chunk.choices[0].token_ids
        assert pieces == prompt["generated"], (pieces, prompt["generated"])

    async def all_of_them():
        async with server.client(AsyncOpenAI, timeout=300) as client:
            await asyncio.gather(*(one(client, GOLDEN[i % len(GOLDEN)]) for i in range(64)))

    asyncio.run(all_of_them())


@check
def raw_responses(server):
    client = server.client()
    response = client.chat.completions.with_raw_response.create(
        model="tiny", messages=CHAT, max_tokens=1, extra_headers={"X-Request-Id": "mine"}
    )
    assert response.headers["x-request-id"] == "mine"
    assert response.parse().id == "chatcmpl-mine"


@check
def state(server):
    assert server.get("/health") == ""
    assert json.loads(server.get("/version"))["version"]
    metrics = server.get("/metrics")
    for line in [
        'halyard:num_requests_running{model_name="tiny",engine="0"} 0',
        'halyard:kv_cache_usage_perc{model_name="tiny",engine="0"} 0.0',
        'halyard:request_success_total{model_name="tiny",engine="0",finished_reason="abort"}',
    ]:
        assert line in metrics, line
    success = re.search(r'finished_reason="length"\} (\d+)', metrics)
    assert int(success[1]) > 100


def main():
    server = Server(
        "--served-model-name", "tiny", "org/tiny", "--api-key", KEY, "other",
        "--enable-request-id-headers", "--max-num-seqs", "32",
    )
    try:
        for function in CHECKS:
            begun = time.monotonic()
            function(server)
            print(f"ok   {function.__name__} ({time.monotonic() - begun:.2f} s)", flush=True)
        code, rest = server.stop()
        assert code == 0, (code, rest)
        print("ok   stops in order")
    except Exception:
        traceback.print_exc()
        print(f"FAIL {function.__name__}", flush=True)
        server.process.kill()
        _, rest = server.process.communicate()
        sys.exit("".join(server.lines) + rest)


main()
