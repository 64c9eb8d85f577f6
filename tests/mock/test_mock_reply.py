from __future__ import annotations

import pytest

from proxy.mock.controls import Controls, RefusedError
from proxy.mock.reply import DEFAULT_PIECES, DEFAULT_TEXT, THOUGHTS, Reply, count_words, make_reply


def reply_of(model: str = "mock-1", *, thinks: bool = False, controls: Controls | None = None) -> Reply:
    return make_reply(
        number=255, created=1, model=model, prompt="a b c", thinks=thinks, controls=controls or Controls()
    )


def test_reply_default() -> None:
    """The default text comes word by word, is lively enough to watch, and each word is a token."""
    reply = reply_of()

    assert list(reply.texts()) == list(DEFAULT_PIECES)
    assert reply.whole() == DEFAULT_TEXT
    assert reply.count >= 8
    assert (reply.prompt_tokens, reply.output_tokens, reply.total_tokens) == (3, reply.count, reply.count + 3)
    assert reply.identifier("id-") == "id-0000000000000000000000ff"


@pytest.mark.parametrize("events", [0, 1, 30, 1000])
def test_reply_events(events: int) -> None:
    """A reply has as many pieces as asked for, the default text going round."""
    reply = reply_of(controls=Controls(events=events))

    texts = list(reply.texts())
    assert len(texts) == events == reply.output_tokens
    assert "".join(texts) == reply.whole()
    assert texts == [DEFAULT_PIECES[index % len(DEFAULT_PIECES)] for index in range(events)]


@pytest.mark.parametrize("size", [1, 27, 28, 1000])
def test_reply_size(size: int) -> None:
    """With a size each piece is exactly that many bytes."""
    assert {len(text.encode()) for text in reply_of(controls=Controls(size=size)).texts()} == {size}


@pytest.mark.parametrize(
    ("model", "thinks", "thoughts", "has_image"),
    [
        ("plain", False, (), False),
        ("plain", True, THOUGHTS, False),
        ("Qwen-Thinking", False, THOUGHTS, False),
        ("reasoner", False, THOUGHTS, False),
        ("gpt-image-1", False, (), True),
    ],
)
def test_reply_model(model: str, thinks: bool, thoughts: tuple[str, ...], has_image: bool) -> None:
    """A model's name, or the request, decides whether there are thoughts and a picture."""
    reply = reply_of(model, thinks=thinks)
    assert (reply.thoughts, reply.has_image) == (thoughts, has_image)
    assert reply.output_tokens == reply.count + len(thoughts)


def test_reply_whole_too_long() -> None:
    """A text of more than 16 MiB is never put together."""
    with pytest.raises(RefusedError, match="events x size"):
        reply_of(controls=Controls(events=17, size=1024 * 1024)).whole()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (None, 1),
        ("one two  three", 3),
        (
            [
                {"role": "user", "content": "one two"},
                {"role": "system", "content": [{"type": "text", "text": "three"}]},
            ],
            3,
        ),
        ([{"role": "user", "parts": [{"text": "one"}, {"inlineData": {"mimeType": "image/png", "data": "x"}}]}], 2),
        (7, 1),
    ],
)
def test_count_words(prompt: object, words: int) -> None:
    """A prompt costs its words, wherever the dialect keeps them, and never nothing."""
    assert count_words(prompt) == words


def test_count_words_deep() -> None:
    """A prompt nested deeper than Python recurses is counted all the same."""
    prompt: object = "one two"
    for _ in range(5000):
        prompt = [prompt]
    assert count_words(prompt) == 2
