"""The tokenizer: the words of the templates and of the scenes, and letters for all other words.

WordPiece over lower-cased text. A word outside the vocabulary falls apart into letters, and a
number into digits, so that a free spelling still gives tokens which the model knows.
"""

import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vitcop.scenes.world import BACKDROPS, COLORS, EMOJI, MARKS, SHAPES, SIGN, WORDS

PAD, UNK, BOS, EOS, IMAGE = "<pad>", "<unk>", "<s>", "</s>", "<image>"
TEMPLATE_WORDS = (
    *("user", "assistant", "is", "there", "a", "an", "in", "the", "picture", "image", "do", "you"),
    *("see", "can", "how", "many", "are", "what", "color", "of", "left", "or", "right", "above"),
    *("below", "number", "word", "on", "does", "say", "read", "shape", "shapes", "yes", "no"),
    *("at", "top", "bottom", "background", "behind", "objects"),
)
ENDINGS = ("##s", "##es")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def prompt(question: str) -> str:
    """The prompt that the chat template gives for one picture and one question."""
    return f"USER: {IMAGE}\n{question} ASSISTANT:"


def make_tokenizer() -> PreTrainedTokenizerFast:
    characters = string.ascii_lowercase + string.digits
    pieces = [
        *(PAD, UNK, BOS, EOS, IMAGE),
        *":?.,!'-",
        *characters,
        *(f"##{character}" for character in characters),
        *ENDINGS,
        *TEMPLATE_WORDS,
        *COLORS,
        *SHAPES,
        *EMOJI,
        SIGN,
        *WORDS,
        *MARKS,
        *BACKDROPS,
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )
