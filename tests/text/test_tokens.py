"""Texts to pieces of token ids: framed as the tokenizer itself would, cut where a recipe says so, and put together."""

from itertools import pairwise

import numpy as np
import pytest

from lora_cls.commands.check import check
from lora_cls.errors import BackboneError, RecipeError
from lora_cls.recipe import Data
from lora_cls.text.tokens import Frame, Tokens, encode, prompt_frame, shuffled_batches, special_frame
from lora_cls.training.factory import make_learner

WORDS = [
    "happy",
    "angry",
    "furious",
    "dog",
    "house",
    "morning",
    "letter",
    "friend",
    "week",
    "ticket",
    "garden",
    "window",
]
ODD = [
    "",
    " ",
    "\n",
    "  leading",
    "trailing  ",
    "😀 emoji\r\n\ttab",
    "[SEP] <s> </s> [CLS] <eos> <|endoftext|> x",
    "zzz" * 40,
]
TEMPLATES = {
    "BERT pairs": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
    "eos only, as Qwen3's embedding models": ("$A </s>", "$A $B:1 </s>:1"),
    "two at the end": ("<s> $A </s> </s>", "<s> $A </s> </s> $B:1 </s>:1"),
    "bos only": ("<s> $A", "<s> $A $B:1"),
    "none": ("$A", "$A $B:1"),
}


def words(n, seed=0):
    return " ".join(np.random.default_rng(seed).choice(WORDS, size=n))


@pytest.fixture(scope="module")
def make_tokenizer():
    """`make_tokenizer(single, pair, unk_only=False, **options)`: a Metaspace unigram tokenizer with such a template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", scheme="always", letters=True, **options):
        vocab = ["<pad>", "<s>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS)]
        vocab += list("abcdefghijklmnopqrstuvwxyz") if letters else []
        tokenizer = Tokenizer(models.Unigram([(token, -float(i)) for i, token in enumerate(vocab)], unk_id=3))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
        ids = [(name, vocab.index(name)) for name in ("<s>", "</s>") if name in single + pair]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)

    return make


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny_model):
    from lora_cls.modeling.loading import load_tokenizer
    from lora_cls.recipe import Backbone

    return lambda kind: load_tokenizer(Backbone(name_or_path=tiny_model(kind)))


def same_as_the_tokenizers_own(tokenizer, texts):
    for max_length in (8, 20, 10_000):
        found = encode(tokenizer, texts, Data(max_length=max_length))
        own = tokenizer(texts, truncation=True, max_length=max_length, verbose=False)["input_ids"]
        assert [list(row) for row in found.ids] == [row or [tokenizer.pad_token_id or 0] for row in own]
        assert found.text.tolist() == list(range(len(texts)))
        full = tokenizer(texts, verbose=False)["input_ids"]
        assert found.truncated.tolist() == [len(row) > max_length for row in full]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gemma3", "qwen2"])
def test_token_for_token_as_the_tokenizer(kind, tiny_tokenizer):
    """Short, cut and odd texts have the ids that the tokenizer's own truncation gives."""
    same_as_the_tokenizers_own(tiny_tokenizer(kind), [*ODD, *(words(n) for n in range(1, 40))])


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_token_for_token_with_every_template(make_tokenizer, template, scheme):
    """Whatever stands around a text, also where words begin with a marked space."""
    single, pair = TEMPLATES[template]
    same_as_the_tokenizers_own(make_tokenizer(single, pair, scheme), [*ODD, *(words(n) for n in range(1, 40))])


def test_frame_of_a_tokenizer_that_knows_no_a(make_tokenizer):
    """The letter that is asked for may be unknown: the unknown token is the text's, not the frame's."""
    assert special_frame(make_tokenizer(letters=False)) == Frame([1], [2])
    assert special_frame(make_tokenizer("$A", "$A $B", letters=False)) == Frame([], [])


def test_an_empty_frame_is_a_frame(make_tokenizer):
    """Given as one, it is not looked up again: here it would be another."""
    assert encode(make_tokenizer(), ["happy"], Data(), Frame([], [])).ids[0].tolist()[0] != 1


def test_python_tokenizer():
    """One without the Rust library, and whose own limit is far shorter, frames and reads whole texts."""
    from transformers import CanineTokenizer

    tokenizer = CanineTokenizer(model_max_length=16)
    assert special_frame(tokenizer) == Frame([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    texts = ["", "happy", "the dog " * 30]
    found = encode(tokenizer, texts, Data(max_length=32))
    assert [list(row) for row in found.ids] == tokenizer(texts, truncation=True, max_length=32)["input_ids"]
    chunks = encode(tokenizer, texts, Data(max_length=32, long_text="chunk"))
    assert "".join(chr(i) for row in chunks.ids[2:] for i in row[1:-1]) == texts[2]


def test_tokens_inside_the_text_are_refused():
    """A tokenizer that changes the text's own tokens cannot frame pieces of it."""

    class Strange:
        def __call__(self, text, add_special_tokens=True, **_):
            return {"input_ids": [7, 8] if add_special_tokens else [5]}

    with pytest.raises(BackboneError, match="do not stand around the text"):
        special_frame(Strange())


@pytest.mark.parametrize("mode", ["truncate", "head_tail", "chunk"])
def test_sides_of_the_tokenizer_play_no_part(make_tokenizer, mode):
    """A tokenizer that pads and truncates on the left is read as any other."""
    data = Data(max_length=12, long_text=mode)
    texts = [words(50), "happy", words(11)]
    right, left = (encode(make_tokenizer(padding_side=s, truncation_side=s), texts, data) for s in ("right", "left"))
    assert [row.tolist() for row in right.ids] == [row.tolist() for row in left.ids]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gemma3", "qwen2"])
def test_no_warning_of_long_texts(kind, tiny_tokenizer, caplog):
    """The tokenizer's own remark on its model's length would be wrong: nothing longer reaches the model."""
    import logging

    caplog.set_level(logging.WARNING)
    tokens = encode(tiny_tokenizer(kind), [words(5000)], Data(max_length=48, long_text="chunk"))
    assert tokens.lengths.max() <= 48
    assert not caplog.records


# What is read of a long text


def body(tokens, frame):
    return [list(row[len(frame.before) : len(row) - len(frame.after)]) for row in tokens.ids]


@pytest.mark.parametrize("stride", [0, 3, 9])
@pytest.mark.parametrize("n", [1, 18, 19, 20, 37, 100, 5000])
def test_chunks_cover_the_text(tiny_tokenizer, n, stride):
    """Chunks are framed, as few as will do, of equal length within a token, overlap by the stride, and lose nothing."""
    tokenizer = tiny_tokenizer("roberta")
    frame, text = special_frame(tokenizer), words(n)
    tokens = encode(tokenizer, [text], Data(max_length=20, long_text="chunk", chunk_stride=stride))
    whole = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    pieces = body(tokens, frame)
    joined = pieces[0] + [token for piece in pieces[1:] for token in piece[stride:]]
    assert joined == whole
    assert all(one[len(one) - stride :] == other[:stride] for one, other in pairwise(pieces))
    assert all(row[0] == tokenizer.bos_token_id and row[-1] == tokenizer.eos_token_id for row in tokens.ids)
    assert tokens.lengths.max() <= 20 and np.ptp(tokens.lengths) <= 1
    assert len(pieces) == max(1, int(np.ceil((len(whole) - stride) / (18 - stride))))
    assert not tokens.truncated[0]


def test_most_chunks(tiny_tokenizer):
    """`max_chunks` keeps chunks spread evenly over the text, the first and the last among them, and says it cut."""
    tokenizer, texts = tiny_tokenizer("roberta"), [words(200), "happy", words(30, 1)]
    every = encode(tokenizer, texts, Data(max_length=20, long_text="chunk"))
    some = encode(tokenizer, texts, Data(max_length=20, long_text="chunk", max_chunks=4))
    assert every.n_pieces[0] > 8
    assert some.n_pieces.tolist() == [4, 1, min(4, every.n_pieces[2])]
    assert some.truncated.tolist() == [True, False, every.n_pieces[2] > 4]
    assert some.ids[0].tolist() == every.ids[0].tolist()
    assert some.ids[3].tolist() == every.ids[every.n_pieces[0] - 1].tolist()
    one = encode(tokenizer, texts, Data(max_length=20, long_text="chunk", max_chunks=1))
    assert one.n_pieces.tolist() == [1, 1, 1]


@pytest.mark.parametrize("max_length", [20, 21])
def test_head_and_tail(tiny_tokenizer, max_length):
    """Start and end are kept, the start one token longer where the room is odd; a text that fits is left whole."""
    tokenizer = tiny_tokenizer("roberta")
    tokens = encode(tokenizer, [words(50), "happy dog"], Data(max_length=max_length, long_text="head_tail"))
    whole = tokenizer(words(50), add_special_tokens=False)["input_ids"]
    long, short = body(tokens, special_frame(tokenizer))
    head = (max_length - 1) // 2
    assert long == whole[:head] + whole[len(whole) - (max_length - 2 - head) :]
    assert short == tokenizer("happy dog", add_special_tokens=False)["input_ids"]
    assert tokens.truncated.tolist() == [True, False] and tokens.lengths[0] == max_length


@pytest.mark.parametrize("mode", ["truncate", "head_tail", "chunk"])
def test_whole_lengths(tiny_tokenizer, mode):
    """However a text is cut, its whole length is known, as it would be read without a limit; also after `take`."""
    tokenizer, texts = tiny_tokenizer("bert"), ["happy " * 40, "happy", "", "sad dog " * 9]
    tokens = encode(tokenizer, texts, Data(max_length=12, long_text=mode))
    endless = encode(tokenizer, texts, Data(max_length=10_000))
    assert tokens.whole_lengths.tolist() == endless.lengths.tolist()
    assert tokens.take([3, 0]).whole_lengths.tolist() == endless.lengths[[3, 0]].tolist()


def test_a_million_characters(tiny_tokenizer):
    """Read to its last token, beside a thousand short texts; tokenised in parts, the order stays."""
    tokenizer = tiny_tokenizer("bert")
    million = (words(200) + " ") * 900
    texts = ["happy", million, *(words(3, i) for i in range(1500)), "angry"]
    assert len(million) > 1_000_000
    tokens = encode(tokenizer, texts, Data(max_length=128, long_text="chunk"))
    frame = special_frame(tokenizer)
    pieces = body(tokens.take([1]), frame)
    assert [token for piece in pieces for token in piece] == tokenizer(words(200), add_special_tokens=False)[
        "input_ids"
    ] * 900
    assert (tokens.n_pieces == 1).sum() == len(texts) - 1
    for i in (0, 2, 700, 1501, 1502):
        assert list(tokens.take([i]).ids[0]) == tokenizer(texts[i])["input_ids"]


def test_no_room(tiny_tokenizer):
    """Nothing fits between the frame, or nothing new beside the overlap; the overlap counts only for chunks."""
    tokenizer = tiny_tokenizer("bert")
    frame = prompt_frame(tokenizer, "happy dog house morning {text} letter friend", closed=True)
    assert len(frame) == 8
    with pytest.raises(RecipeError, match=r"max_length is 8: prompt and special tokens take 8 tokens of it\. Raise"):
        encode(tokenizer, ["happy"], Data(max_length=8), frame)
    with pytest.raises(RecipeError, match="chunk_stride 5"):
        encode(tokenizer, ["happy"], Data(max_length=13, long_text="chunk", chunk_stride=5), frame)
    assert encode(tokenizer, ["happy"], Data(max_length=13, chunk_stride=5), frame).lengths.tolist() == [9]


# Prompts


@pytest.mark.parametrize("kind", ["bert", "roberta", "qwen2", "gemma3"])
def test_prompt_reads_as_one_text(kind, tiny_tokenizer):
    """A prompt and its text have the tokens of the two written together: no token for the space between."""
    tokenizer, prompt = tiny_tokenizer(kind), "letter from a friend: {text}\nhappy or angry:"
    frame = prompt_frame(tokenizer, prompt, closed=True)
    found = encode(tokenizer, ["the dog was great"], Data(max_length=100), frame)
    assert found.ids[0].tolist() == tokenizer(prompt.replace("{text}", "the dog was great"))["input_ids"]


def test_prompt_stands_around_every_chunk(tiny_tokenizer):
    """Open at its end for heads that read what follows, closed for others; never cut."""
    tokenizer = tiny_tokenizer("bert")
    ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("letter", "friend")}
    for closed in (True, False):
        frame = prompt_frame(tokenizer, "letter {text} friend", closed)
        assert frame.before == [tokenizer.cls_token_id, *ids["letter"]]
        assert frame.after == ids["friend"] + [tokenizer.sep_token_id] * closed
        tokens = encode(tokenizer, [words(60)], Data(max_length=16, long_text="chunk"), frame)
        assert len(tokens.ids) > 4
        for row in tokens.ids:
            assert list(row[: len(frame.before)]) == frame.before
            assert list(row[len(row) - len(frame.after) :]) == frame.after


# Pieces and their texts


@pytest.fixture
def three():
    """A text of three pieces, one of one, one of two."""
    rows = [np.arange(n) for n in (5, 6, 7, 2, 9, 8)]
    return Tokens(rows, np.array([0, 0, 0, 1, 2, 2]), np.array([False, True, False]), 16)


def test_take_keeps_pieces_together(three):
    """In any order, with repeats, or none."""
    taken = three.take([2, 0, 2])
    assert taken.lengths.tolist() == [9, 8, 5, 6, 7, 9, 8]
    assert taken.text.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert taken.n_pieces.tolist() == [2, 3, 2] and taken.truncated.tolist() == [False, False, False]
    assert taken.take([1]).lengths.tolist() == [5, 6, 7]
    none = three.take([])
    assert none.n_texts == 0 and len(none.ids) == 0 and none.n_pieces.tolist() == []


def test_empty_texts_are_pieces_too(tiny_tokenizer):
    """A text without a token has one piece, so that every text is answered."""
    tokens = encode(tiny_tokenizer("qwen2"), ["", words(50), ""], Data(max_length=20, long_text="chunk"))
    assert tokens.n_pieces[[0, 2]].tolist() == [1, 1] and tokens.n_pieces[1] > 2
    assert tokens.take([2, 0]).lengths.tolist() == [1, 1]
    assert encode(tiny_tokenizer("qwen2"), [], Data()).n_texts == 0


def test_pieces_are_batched_by_their_own_length(three):
    """Pieces of one text need not stand in one batch: those of similar length do."""
    batches = shuffled_batches(three.lengths, 2, np.random.default_rng(0))
    assert sorted(tuple(sorted(three.lengths[batch])) for batch in batches) == [(2, 5), (6, 7), (8, 9)]


def test_texts_of_another_script(tiny_recipe, emotion_table, tiny_model):
    """The share of unknown tokens is counted, said from 1 % on, and refused above a half of the training texts."""
    recipe = tiny_recipe("bert")
    learner = make_learner(recipe, ["joy", "anger", "fear"])
    tokens = learner.session.encode(["happy", "ไทย สบาย", "happy ไทย", ""])
    assert tokens.unknown.tolist() == [0, 1, 0.5, 0]
    assert tokens.take([1, 2]).unknown_share == 0.75
    table = emotion_table(24)
    few, many = table.copy(), table.copy()
    few.loc[:3, "text"] = [f"ไทย {i}" for i in range(4)]
    many["text"] = [f"ไทย สบาย ดี {i}" for i in range(24)]
    found = check(recipe, few, many[["id", "text"]], measure=False)
    assert 0.01 < found.tokens["train"]["unknown"] < 0.2
    assert found.tokens["test"]["unknown"] > 0.5
    assert len([note for note in found.notes if "unknown to the model's tokenizer" in note]) == 2
    with pytest.raises(BackboneError, match=r"\d+% of the tokens in the training texts are unknown.*multilingual"):
        check(recipe, many, measure=False)
    byte_level = make_learner(tiny_recipe("gpt2"), ["joy", "anger", "fear"]).session.encode(["ไทย"])
    assert byte_level.unknown_share == 0
