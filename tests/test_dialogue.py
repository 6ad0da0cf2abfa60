"""Dialogues of a corpus: one reply, or turn by turn against the corpus's user, a function, or a language model."""

from __future__ import annotations

import json

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from small import TEXTS, small_policy
from test_pipeline import small_run

from envs.dialogue import DialogueEnv, word_f1
from envs.vector import TextVectorEnv
from rlobj.chat import environment_of
from rlobj.chat_format import ChatFormat
from rlobj.data import dialogues, swap_roles
from rlobj.model_user import ModelUser
from rlobj.policies import load_causal, load_tokenizer
from rlobj.results import load_summary
from rlobj.rollout import Sampling, play
from rlobj.supervised import dialogue_rows


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SHOP = [
    said("system", "be kind"),
    said("user", "is it open ?"),
    said("assistant", "yes until six"),
    said("user", "谢谢 , and on sunday ?"),
    said("tool", "sunday : closed"),
    said("assistant", "no , closed"),
    said("user", "bye"),
]
SHORT = [said("user", "hello"), said("assistant", "hello there")]


def test_replay_brings_the_corpuss_next_turns_whatever_the_policy_says():
    env = DialogueEnv(user="replay", dialogues=[SHOP, SHORT])
    observation, _ = env.reset(seed=0)
    assert observation == SHOP[:2]
    observation, reward, terminated, truncated, _ = env.step("yes")
    assert observation == [*SHOP[:2], said("assistant", "yes"), *SHOP[3:5]]
    assert (reward, terminated, truncated) == (0.0, False, False)
    _, reward, terminated, _, info = env.step("no , closed")
    assert terminated and info["references"] == ["yes until six", "no , closed"] and info["turns"] == 2
    assert reward == pytest.approx((word_f1("yes", "yes until six") + 1.0) / 2)
    assert env.reset(seed=3)[0] == SHORT[:1], "seed i is dialogue i, modulo their number"
    assert env.step("hello there")[1:3] == (1.0, True)


def test_a_function_plays_the_user_until_it_has_nothing_to_say():
    def user(messages):
        assert messages[-1]["role"] == "assistant"
        return None if "bye" in messages[-1]["content"] else f"after {len(messages)}"

    env = DialogueEnv(user=user, dialogues=[SHOP], max_turns=3)
    env.reset(seed=0)
    assert env.step("hm")[0][-1] == said("user", "after 3")
    assert env.step("bye")[2:4] == (True, False)
    env.reset(seed=0)
    assert [env.step("hm")[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    assert env.own_reward() == 0.0, "nothing to compare with"


def test_what_does_not_belong_together_is_named():
    with pytest.raises(ValueError, match="dialogues and user belong together"):
        DialogueEnv(dialogues=[SHOP])
    with pytest.raises(ValueError, match="dialogues and user belong together"):
        DialogueEnv(prompts=[SHOP[:2]], references=["x"], user="replay")
    with pytest.raises(ValueError, match="user is 'repaly': expected 'replay', a function"):
        DialogueEnv(user="repaly")
    with pytest.raises(ValueError, match="user is 5: expected 'replay'"):
        DialogueEnv(user=5)
    with pytest.raises(ValueError, match="expected a function"):
        DialogueEnv(user="envs.dialogue:EXAMPLES")
    with pytest.raises(ValueError, match="dialogues is empty"):
        DialogueEnv(user="replay", dialogues=[])
    with pytest.raises(ValueError, match="max_turns is 0"):
        DialogueEnv(user="replay", max_turns=0)


def test_the_checker_passes_with_a_user():
    check_env(gymnasium.make("rlobj/Dialogue-v0", user="replay").unwrapped)


# The user's side ------------------------------------------------------------------------------------------------------


def test_the_users_side_has_a_target_for_each_of_its_answers(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"messages": SHOP}, ensure_ascii=False) + "\n", encoding="utf-8")
    flipped = dialogues(str(path), role="user").messages[0]
    assert flipped == swap_roles(SHOP)
    assert [m["role"] for m in flipped] == ["assistant", "user", "assistant", "user", "assistant"]
    model = small_policy(tmp_path / "model")
    chat = ChatFormat(load_tokenizer(model))
    row = dialogue_rows(chat.tokenizer, [flipped], 512)[0]
    assert [chat.decode(ids) for ids in runs(row.labels)] == ["谢谢 , and on sunday ?", "bye"], (
        "the opening answers nobody"
    )


def runs(labels: list[int]) -> list[list[int]]:
    """The stretches of labels that are targets."""
    found: list[list[int]] = [[]]
    for label in labels:
        if label == -100:
            found.append([])
        else:
            found[-1].append(label)
    return [ids for ids in found if ids]


def test_a_language_model_plays_the_user_and_answers_the_same_in_the_same_words(tmp_path):
    path = small_policy(tmp_path / "user")
    user, again = ModelUser(path, max_tokens=6), ModelUser(path, max_tokens=6)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    words = user([said("user", TEXTS[0]), said("assistant", "yes")])
    assert words == again([said("user", TEXTS[0]), said("assistant", "yes")]) and words
    assert torch.equal(state, torch.get_rng_state()), "the policy's own sampling goes on as if nobody had spoken"
    assert user([said("user", TEXTS[0] * 50), said("assistant", "yes")]) is None, "outgrown"

    policy = load_causal(path), load_tokenizer(path)
    opening = [[said("user", text), said("assistant", "yes")] for text in TEXTS]
    vector = TextVectorEnv(lambda: DialogueEnv(user=user, dialogues=opening, max_turns=2), 3)
    result = play(*policy, vector, [0, 1, 2], Sampling(max_reply_tokens=4, max_length=120))
    assert any(e.columns["turns"] == 2 for e in result.episodes)
    assert all(e.completion[1]["role"] == "user" for e in result.episodes if e.columns["turns"] == 2)


def test_a_run_against_the_corpuss_user_then_one_against_a_model_of_it(tmp_path):
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    rows = [
        {
            "messages": [
                said("user", f"say {w} {n}"),
                said("assistant", f"{w} it is {n}"),
                said("user", f"again {w}"),
                said("assistant", f"{w} once more"),
                said("user", "thanks"),
            ]
        }
        for w in words
        for n in range(5)
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kwargs = '{"user": "replay"}'
    report = small_run("corpus-dialogue", tmp_path, data__train=path, env__kwargs=kwargs)
    assert load_summary(report.parent)[0]["turns"][0] == 2.0
    small_run(
        "corpus-dialogue", tmp_path, name="user", data__train=path, data__role="user",
        env__kwargs="{}", reward__kind="environment", objective__lambda_sup=0,
    )  # fmt: skip
    model = json.dumps({"user": f"model:{tmp_path / 'user' / 'warm_start'}", "max_turns": 2})
    settings = {"objective__lambda_sup": 0.1}
    with pytest.raises(ValueError, match=r"reward\.kind is 'environment', which compares with the corpus"):
        small_run("corpus-dialogue", tmp_path, data__train=path, env__kwargs=model, reward__kind="environment")
    report = small_run("corpus-dialogue", tmp_path, name="both", data__train=path, env__kwargs=model, **settings)
    assert 1.0 <= load_summary(report.parent)[0]["turns"][0] <= 2.0
    assert isinstance(environment_of(report.parent), DialogueEnv), "a person can talk to it"
