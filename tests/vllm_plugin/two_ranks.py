"""Asks two tensor-parallel processes, and writes their answers: two_ranks.py NAME RETENTION"""

import json
import os
import sys

os.environ |= {"VLLM_CPU_SIM_MULTI_NUMA": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
os.environ |= {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}  # functions are sent to the processes

from engines import ask, engine, prune_by, tokens
from setting import questions, watching_methods


def main(name: str, retention: float) -> None:
    methods = watching_methods(name, retention)
    with engine(name, methods["visionzip"], tensor_parallel_size=2) as llm:
        for method, pruner in methods.items():
            prune_by(llm, pruner)
            print("ANSWERS", json.dumps([method, tokens(ask(llm, questions(name)))]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
