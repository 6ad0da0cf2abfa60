"""The warm start of a run: the policy that all λ begin with."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.trained import require_vocabulary
from rlobj.chat_format import ChatFormat
from rlobj.one_run import Run
from rlobj.policies import load_causal, load_encoder, load_tokenizer, make_causal, make_encoder, make_tokenizer
from rlobj.stage_inputs import warm_inputs
from rlobj.stages import Stage
from rlobj.supervised import warm_start


def stage_of(run: Run) -> Stage:
    """Where it is kept, and what it depends on."""
    what = "warm start: supervised training on labelled data"
    return Stage(run.warm_start, what, warm_inputs(run.config))


def train(run: Run) -> None:
    """Train the policy on labelled data, unless that is done."""
    config, stage = run.config, stage_of(run)

    def work() -> dict[str, Any]:
        policy, tokenizer = _new_policy(run)
        rows, _ = run.rows(tokenizer)
        history = warm_start(
            policy,
            tokenizer,
            rows,
            stage.directory,
            epochs=config.warm_start.epochs,
            learning_rate=config.warm_start.learning_rate,
            batch_size=config.warm_start.batch_size,
            seed=config.seed,
            trl=config.warm_start.trl,
            callbacks=run.supervised_callbacks("supervised", {"loss": "ℓ"}),
            resume=run.resume(stage),
        )
        run.stop_if_asked()
        parameters = sum(p.numel() for p in policy.parameters())
        return {"history": history, "says": f"{parameters:,} parameters, {len(rows)} labelled rows"}

    run.do(stage, work)


def _new_policy(run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    made, labels = run.config.policy, run.task.label_names
    size: dict[str, Any] = {
        "hidden_size": made.hidden_size,
        "layers": made.layers,
        "heads": made.heads,
        "max_length": made.max_length,
        "seed": run.config.seed,
    }
    if made.model is not None:
        tokenizer = load_tokenizer(made.model)
        if labels is None:
            ChatFormat(tokenizer)  # what its chat template lacks is told now
        model = load_causal(made.model) if labels is None else load_encoder(made.model, labels)
        require_vocabulary(model, tokenizer, f"policy.model {made.model!r}")
    else:
        tokenizer = make_tokenizer(run.task.texts(), made.vocab_size, made.max_length)
        model = make_causal(tokenizer, **size) if labels is None else make_encoder(tokenizer, labels, **size)
    return (model if labels is None else run.as_policy(model)), tokenizer
