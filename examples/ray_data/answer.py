"""Answers many questions about pictures with pruned models, one to a Ray actor.

Reads Parquet with the columns `id`, `picture` (an encoded file: PNG, JPEG, ...) and `question`, and writes Parquet with
`id` and `answer`.
"""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset, SaveMode
from transformers import AutoModelForImageTextToText, AutoProcessor

import vitcop
from vitcop.builtin import MODEL_PATH
from vitcop.inputs.pictures import read_picture
from vitcop.shares import read_share

BATCH_SIZE = 8
MAX_NEW_TOKENS = 64
ROWS_PER_FILE = 10_000
RESTARTS = 3


class Answerer:
    """A model that is pruned for as long as its actor lives.

    Args:
        model: folder or Hugging Face name; its processor needs a chat template.
        method: how to prune it.
        device: "cpu" or "cuda".
        threads: that torch may use.
    """

    def __init__(self, model: str, method: vitcop.Pruner, device: str, threads: int) -> None:
        torch.set_num_threads(threads)  # an exported OMP_NUM_THREADS would hold for all actors of a machine alike
        self.processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
        self.processor.tokenizer.padding_side = "left"
        dtype = "auto" if device == "cuda" else "float32"
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype, trust_remote_code=False).to(device)
        self.pruning = vitcop.prune(self.model, method)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray | list[str]]:
        """The answers to a batch of rows, beside their ids.

        Raises:
            VitcopError: a picture cannot be read; names its row.
        """
        pictures = [
            read_picture(bytes(data), f"picture of row {row!r}")
            for row, data in zip(batch["id"], batch["picture"], strict=True)
        ]
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
            for picture, question in zip(pictures, batch["question"], strict=True)
        ]
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        ).to(self.model.device, dtype=self.model.dtype)
        output = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return {"id": batch["id"], "answer": [text.strip() for text in answers]}


def answer(
    questions: Dataset,
    model: str,
    method: vitcop.Pruner,
    *,
    actors: int,
    device: str = "cpu",
    threads: int = 1,
    batch_size: int = BATCH_SIZE,
) -> Dataset:
    """The answers to all questions, lazily, in no particular order.

    Args:
        questions: with the columns `id`, `picture` and `question`.
        model: folder or Hugging Face name.
        method: how to prune it.
        actors: copies of the model; with "cuda" each takes a GPU of its own.
        device: "cpu" or "cuda".
        threads: CPUs that each actor takes.
        batch_size: questions that an actor answers at once.

    Raises:
        ValueError: Ray has not enough CPUs or GPUs, and would wait for them without an end.
    """
    gpus = int(device == "cuda")
    resources = ray.cluster_resources()
    if actors * threads >= resources.get("CPU", 0) or actors * gpus > resources.get("GPU", 0):
        raise ValueError(
            f"{actors} actors with {threads} CPUs and {gpus} GPUs each, and a CPU to read and write with, do not fit "
            f"into {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs; take fewer of them."
        )
    # A block is what an actor is given: without this, a few files would be one block, and one actor would do all of it.
    return questions.repartition(target_num_rows_per_block=batch_size).map_batches(
        Answerer,
        fn_constructor_args=(model, method, device, threads),
        batch_size=batch_size,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=threads,
        num_gpus=gpus,
        # By default there is no limit: a batch that kills its actor would do so for ever.
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )


def start_ray(cpus: int) -> None:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine with as many CPUs, or all if it has more."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level="warning")
    else:
        cpus = max(cpus, os.cpu_count() or 1)
        ray.init("local", num_cpus=cpus, include_dashboard=False, logging_level="warning")
    DataContext.get_current().enable_progress_bars = sys.stderr.isatty()


def main() -> None:
    """Read, answer, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", help="file or folder of Parquet")
    parser.add_argument("answers", help="folder to write, which must not be there")
    parser.add_argument("--model", default=str(MODEL_PATH), help="default: the small model in the box")
    parser.add_argument("--method", default="vitcop")
    parser.add_argument("--retention", default="1/9")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPUs of each actor")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    given = parser.parse_args()
    method = vitcop.Pruner.from_dict({"method": given.method, "retention": read_share(given.retention)})
    start_ray(given.actors * given.threads + 1)  # reading and writing take a CPU of Ray's, though little of its time
    answers = answer(
        ray.data.read_parquet(given.questions).select_columns(["id", "picture", "question"]),
        given.model,
        method,
        actors=given.actors,
        device=given.device,
        threads=given.threads,
        batch_size=given.batch_size,
    )
    answers.write_parquet(given.answers, mode=SaveMode.ERROR, min_rows_per_file=ROWS_PER_FILE)


if __name__ == "__main__":
    main()
