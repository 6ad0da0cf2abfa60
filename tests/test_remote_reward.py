"""Rewards over HTTP: against our own server, and against servers that misbehave, over real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reward_models import load_reward
from reward_models.remote import RemoteReward, RemoteRewardError, _asked_to_wait
from rlobj.cli import main

PROMPTS = [[{"role": "user", "content": f"are you there, {i} ?"}] for i in range(5)]
SAID = [[{"role": "assistant", "content": "yes " * (i + 1)}] for i in range(5)]


@contextmanager
def server(answer):
    """`answer(handler, request)` writes to the handler. Yields the address and the requests that came."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append({"headers": dict(self.headers), **json.loads(body)})
            answer(self, requests[-1])

        def log_message(self, *arguments):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/get_reward", requests
    finally:
        running.shutdown()
        running.server_close()


def send(handler, content, status=200):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def lengths(handler, request):
    send(handler, {"rewards": [len(query) for query in request["query"]], "extra_logs": {}})


def test_a_server_of_openrlhfs_kind(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "Bearer 123")
    with server(lengths) as (url, requests):
        reward = load_reward(url, {"batch_size": 2, "authorization": "MY_TOKEN"})
        rewards = reward(prompts=PROMPTS, completions=SAID, label=["a", "b", "c", "d", "e"], success=[True] * 5)
    assert [len(request["query"]) for request in requests] == [2, 2, 1]
    assert requests[0]["query"][0] == "user: are you there, 0 ?\nassistant: yes \n"
    assert requests[0]["prompts"][0] == "user: are you there, 0 ?\n"
    assert requests[1]["labels"] == ["c", "d"]
    assert requests[0]["columns"]["success"] == [True, True]
    assert requests[0]["headers"]["Authorization"] == "Bearer 123"
    assert rewards == [float(len(q)) for request in requests for q in request["query"]]


def test_texts_pass_as_they_are():
    with server(lengths) as (url, requests):
        assert RemoteReward(url)(prompts=["a"], completions=["bc"]) == [3.0]
    assert requests[0]["query"] == ["abc"]


def failing(times, fail):
    left = [times]

    def answer(handler, request):
        if left[0]:
            left[0] -= 1
            fail(handler)
        else:
            lengths(handler, request)

    return answer


def close(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"rew')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "fail",
    [lambda handler: send(handler, {"error": "busy"}, 500), close, cut, lambda handler: time.sleep(0.6)],
    ids=["status 500", "closed", "cut in the middle", "slow"],
)
def test_what_may_pass_is_tried_again(fail):
    with server(failing(1, fail)) as (url, requests):
        rewards = RemoteReward(url, timeout=0.3, retries=2)(prompts=PROMPTS, completions=SAID)
    assert len(rewards) == 5 and len(requests) == 2
    with server(failing(10, fail)) as (url, _), pytest.raises(RemoteRewardError, match="failed 2 times"):
        RemoteReward(url, timeout=0.3, retries=1)(prompts=PROMPTS, completions=SAID)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"rewards": [1.0]}, "1 rewards for 5 episodes"),
        ({"rewards": [1.0] * 6}, "6 rewards for 5 episodes"),
        ({"rewards": ["1.0"] * 5}, "gave the reward '1.0'"),
        ({"rewards": [True] * 5}, "gave the reward True"),
        ({"scores": [1.0] * 5}, "expected a list under 'rewards'"),
        ([1.0] * 5, "expected a list under 'rewards'"),
        (b"<html>hello", "expected JSON"),
    ],
)
def test_a_wrong_answer_is_no_reward(content, words):
    with server(lambda handler, request: send(handler, content)) as (url, requests):
        with pytest.raises(RemoteRewardError, match=words):
            RemoteReward(url)(prompts=PROMPTS, completions=SAID)
        assert len(requests) == 1, "asking again would not mend it"


def test_nan_and_null_come_through_to_be_dealt_with_as_declared():
    answer = b'{"rewards": [NaN, null, 1, Infinity, -2.5]}'
    with server(lambda handler, request: send(handler, answer)) as (url, _):
        rewards = RemoteReward(url)(prompts=PROMPTS, completions=SAID)
    assert rewards[0] != rewards[0] and rewards[1:] == [None, 1.0, float("inf"), -2.5]


def test_a_refusal_is_told_at_once():
    with server(lambda handler, request: send(handler, {"error": "who are you"}, 401)) as (url, requests):
        with pytest.raises(RemoteRewardError, match=r"401.*who are you"):
            RemoteReward(url)(prompts=PROMPTS, completions=SAID)
        assert len(requests) == 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(RemoteRewardError, match=r"failed 1 times.*refused"):
        RemoteReward(nobody, retries=0)(prompts=PROMPTS, completions=SAID)


def test_a_redirect_takes_the_secret_nowhere(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "Bearer 123-secret")
    with server(lengths) as (elsewhere, stolen):

        def redirect(handler, request):
            handler.send_response(302)
            handler.send_header("Location", elsewhere.replace("//", "//me:hidden@") + "?key=hidden")
            handler.end_headers()

        with server(redirect) as (url, _), pytest.raises(RemoteRewardError, match="status 302, a redirect to") as error:
            RemoteReward(url, authorization="MY_TOKEN")(prompts=PROMPTS, completions=SAID)
        assert not stolen
        assert elsewhere in str(error.value) and "hidden" not in str(error.value)


@pytest.mark.parametrize("status", [200, 403])
def test_no_error_shows_the_secret(monkeypatch, status):
    monkeypatch.setenv("MY_TOKEN", "Bearer 123-secret")

    def echo(handler, request):
        token = request["headers"]["Authorization"]
        send(handler, f"{token} is wrong, {token.split()[1]} too".encode(), status)

    with server(echo) as (url, _), pytest.raises(RemoteRewardError, match=r"\*\*\* is wrong") as error:
        RemoteReward(f"{url}?key=hidden", authorization="MY_TOKEN")(prompts=PROMPTS, completions=SAID)
    assert "secret" not in str(error.value) and "hidden" not in str(error.value)


def test_no_part_of_the_secret_is_shown_where_a_text_is_cut(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", 'Bearer a"secret')

    def cut_in_it(handler, request):
        send(handler, b"x" * 195 + b'a"secret', 403)

    def as_json(handler, request):
        send(handler, {"error": 'a"secret'}, 403)

    def no_http(handler, request):
        handler.wfile.write(b'a"secret\r\n\r\n')

    for answer in (cut_in_it, as_json, no_http):
        with server(answer) as (url, _), pytest.raises(RemoteRewardError, match=r"\*\*\*") as error:
            RemoteReward(url, authorization="MY_TOKEN", retries=0)(prompts=PROMPTS, completions=SAID)
        assert "sec" not in str(error.value)
    monkeypatch.setenv("MY_TOKEN", "Bearer secret\n")
    with pytest.raises(ValueError, match="'MY_TOKEN': that environment variable's value has a line break") as error:
        RemoteReward("http://host/", authorization="MY_TOKEN")
    assert "secret" not in str(error.value)


def no_headers(handler):
    pass


def some_headers(handler):
    handler.send_response(200)
    handler.flush_headers()


def all_headers(handler, status=200):
    handler.send_response(status)
    handler.send_header("Content-Length", "100")
    handler.end_headers()


@pytest.mark.parametrize(
    "begin",
    [no_headers, some_headers, all_headers, lambda handler: all_headers(handler, 403)],
    ids=["status line", "headers", "body", "refusal"],
)
def test_a_dribble_is_late(begin):
    def dribble(handler, request):
        begin(handler)
        for _ in range(30):
            try:
                handler.wfile.write(b" ")
            except OSError:  # nobody listens any more
                return
            time.sleep(0.1)

    with server(dribble) as (url, _), pytest.raises(RemoteRewardError, match=r"no whole answer within 0\.4 s"):
        began = time.monotonic()
        try:
            RemoteReward(url, timeout=0.4, retries=0)(prompts=PROMPTS, completions=SAID)
        finally:
            assert time.monotonic() - began < 2


def test_a_busy_server_says_when_to_come_again():
    def busy(handler):
        handler.send_response(429)
        handler.send_header("Retry-After", "1")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with server(failing(1, busy)) as (url, requests):
        began = time.monotonic()
        RemoteReward(url, retries=1)(prompts=PROMPTS, completions=SAID)
        assert time.monotonic() - began >= 1 and len(requests) == 2


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("3", 3), ("-3", 0), ("100000", 60), ("nan", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after(header, seconds):
    assert _asked_to_wait(header) == seconds


@pytest.mark.parametrize(
    ("url", "kwargs", "words"),
    [
        ("http:///x?key=secret", {}, "expected http://host:port/path"),
        ("http://me:secret@host/", {}, "environment variable"),
        ("http://host/", {"authorization": "NO_SUCH_VARIABLE"}, "no such environment variable"),
        ("http://host/", {"batch_size": 0}, "batch_size"),
        ("http://host/", {"batchsize": 3}, "batch_size"),
    ],
)
def test_bad_settings(url, kwargs, words):
    with pytest.raises(ValueError, match=words) as error:
        load_reward(url, kwargs)
    assert "secret" not in str(error.value)


# Our own server -------------------------------------------------------------------------------------------------------


@contextmanager
def serving(reward, **limits):
    uvicorn = pytest.importorskip("uvicorn")
    from reward_models.serving import make_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = uvicorn.Server(uvicorn.Config(make_app(reward, **limits), port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join()


def test_any_reward_gives_the_same_through_a_server():
    reward = load_reward("politeness")
    texts = [[{"role": "assistant", "content": text}] for text in ("thank you , please", "no", "谢谢")]
    with serving(reward) as address:
        remote = RemoteReward(f"{address}/get_reward")(prompts=[[]] * 3, completions=texts)
        assert json.load(urllib.request.urlopen(f"{address}/health")) == {"status": "ok", "reward": "politeness"}
    assert remote == reward(prompts=[[]] * 3, completions=texts)


def test_columns_reach_the_reward():
    with serving(load_reward("success")) as address:
        assert RemoteReward(address)(prompts=PROMPTS, completions=SAID, success=[True, False, True, True, False]) == [
            1.0, 0.0, 1.0, 1.0, 0.0,
        ]  # fmt: skip


def post(url, body):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, method="POST")) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_openrlhfs_own_requests_are_understood():
    def reward(prompts, completions, label, **columns):
        return [float(c == want) for c, want in zip(completions, label, strict=True)]

    with serving(reward) as address:
        body = json.dumps({"query": ["what?four", "what?five"], "prompts": ["what?"] * 2, "labels": ["four"] * 2})
        assert post(f"{address}/get_reward", body.encode()) == (200, {"rewards": [1.0, 0.0]})


def test_a_request_that_is_none_is_refused_and_a_reward_that_fails_is_no_reward():
    def reward(prompts, completions, **columns):
        if completions[0] == "nan":
            return [float("nan")]
        raise RuntimeError("no idea\nat all")

    with serving(reward, max_request_bytes=1000, max_episodes=3) as address:
        assert post(address, b"{")[0] == 400
        assert post(address, b"[]")[0] == 400
        assert post(address, b'{"query": 3}')[0] == 400
        assert post(address, b'{"query": ["a"], "prompts": ["a", "b"]}')[0] == 400
        assert post(address, b'{"query": ["a"], "columns": {"x": 3}}')[0] == 400
        assert post(address, json.dumps({"query": ["a"] * 4}).encode())[0] == 413
        assert post(address, json.dumps({"query": ["a" * 2000]}).encode())[0] == 413
        status, answer = post(address, b'{"query": ["a"]}')
        assert (status, answer["error"]) == (500, "reward 'reward': RuntimeError: no idea")


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([1.0, float("nan")], "gave nan for episode 1"),
        ([float("-inf"), 1.0], "gave -inf for episode 0"),
        ([1.0], "gave 1 values for 2 episodes"),
        ([1.0, "2.0"], "gave '2.0' for episode 1"),
        ([1.0, [2.0]], "gave [2.0] for episode 1: expected a number"),
        ([10**400, 1.0], "for episode 0: expected a number"),
        ({0: 1.0, 1: 1.0}, "expected a list of 2 numbers"),
        (None, "gave None: expected a list of 2 numbers"),
    ],
)
def test_the_server_tells_of_a_reward_that_is_none(scores, words):
    def reward(prompts, completions, **columns):
        return scores

    with serving(reward) as address:
        status, answer = post(address, b'{"query": ["a", "b"]}')
        assert status == 500 and words in answer["error"]
        scores = [None, 1]
        assert post(address, b'{"query": ["a", "b"]}') == (200, {"rewards": [None, 1.0]})


def test_the_verb_says_what_is_wrong(capsys):
    assert main(["serve-reward", "polteness"]) == 2
    assert "politeness" in capsys.readouterr().err
