"""Asks a server about a picture, by OpenAI's own client: `python ask.py PICTURE QUESTION`."""

from __future__ import annotations

import argparse
import base64
import mimetypes
from pathlib import Path

from openai import OpenAI
from openai.types.chat import ChatCompletion


def ask(client: OpenAI, picture: Path, question: str, max_tokens: int = 64) -> ChatCompletion:
    """The greedy answer of the one model that a server has."""
    kind, _ = mimetypes.guess_type(picture)
    url = f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": content}],
        max_tokens=max_tokens,
        temperature=0,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    asked = parser.parse_args()
    answer = ask(OpenAI(base_url=asked.url, api_key="none"), asked.picture, asked.question)
    print(answer.choices[0].message.content.strip())
    print(f"{answer.usage.prompt_tokens} prompt tokens")
