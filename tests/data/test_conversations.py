"""Conversations become tokens under a chat template, of which only answers are learnt."""

import gzip
import json

import pytest
import torch
from tests.chat import CHATML, FORGETFUL, WORDS, chat_tokenizer, conversations, write_conversations

from attractor.data.text import ConversationRows, end_of_turn
from attractor.data.text.conversations import encode_conversation
from attractor.errors import DataError

ASSISTANT_ONLY = CHATML.replace(
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}",
    "{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}",
)
SYSTEM = {"role": "system", "content": "the old den"}


def test_what_is_learnt_is_what_the_template_marks_as_the_assistant_s() -> None:
    """The same tokens as the library finds where a template has marks, with and without a system message."""
    plain, marked = chat_tokenizer(), chat_tokenizer(ASSISTANT_ONLY)
    for record in conversations():
        for messages in (record["messages"], [SYSTEM, *record["messages"]]):
            [(ids, labels)] = encode_conversation(plain, messages)
            found = marked.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            assert ids.tolist() == found["input_ids"]
            assert (labels != -100).tolist() == [mask == 1 for mask in found["assistant_masks"]]
            assert plain.decode(ids[labels != -100]).count("<|im_end|>") == len(record["messages"]) // 2


def test_a_template_that_forgets_reasoning_gives_an_example_for_every_answer() -> None:
    """Each holds its own reasoning, and that of earlier answers is left out and not learnt."""
    tokenizer = chat_tokenizer(FORGETFUL)
    turns = [("the cat", "sat</t>on a mat"), ("the dog", "ran</t>to ten hens")]
    messages = [
        {"role": role, "content": c} for turn in turns for role, c in zip(("user", "assistant"), turn, strict=True)
    ]
    examples = encode_conversation(tokenizer, messages)
    learnt = [tokenizer.decode(ids[labels != -100]) for ids, labels in examples]
    assert learnt == ["sat</t>on a mat<|im_end|>", "ran</t>to ten hens<|im_end|>"]
    assert "sat" not in tokenizer.decode(examples[1][0])


def test_rows_hold_every_conversation_once_an_epoch_in_its_own_positions(tmp_path) -> None:
    """Labels are tokens of answers or −100, also at the padding and where a conversation begins. Rows can be repeated."""
    tokenizer, records = chat_tokenizer(), conversations(30)
    rows = ConversationRows(write_conversations(tmp_path / "a.jsonl", records), tokenizer, 100, seed=1)
    tokens, positions, labels = rows.batch(0, rows.num_rows)
    assert tokens.shape == positions.shape == labels.shape == (rows.num_rows, 100)
    learnt = labels != -100
    assert torch.equal(labels[learnt], tokens[learnt])
    assert not learnt[positions == 0].any()
    assert int(learnt.sum()) == rows.stats.num_learnt
    found = sorted(
        tokenizer.decode(part)
        for row, at in zip(tokens, positions, strict=True)
        for part in row.tensor_split((at[1:] == 0).nonzero()[:, 0] + 1)
        if part.any()
    )
    texts = [tokenizer.apply_chat_template(record["messages"], tokenize=False) for record in records]
    assert found == sorted(texts)
    assert rows.num_rows == -(-sum(len(tokenizer(t)["input_ids"]) for t in texts) // 100), "rows are not filled"
    again = ConversationRows(tmp_path / "a.jsonl", tokenizer, 100, seed=1)
    later = again.batch(rows.num_rows, rows.num_rows)[0]
    assert not torch.equal(later, tokens)
    assert torch.equal(later.sort(dim=0).values, tokens.sort(dim=0).values)
    assert torch.equal(again.batch(2, 1)[0], tokens[2:3])


def test_long_conversations_are_cut_and_counted(tmp_path) -> None:
    """One whose answer lies behind the end of a row is left out. A compressed file is read."""
    tokenizer, record = chat_tokenizer(), conversations(1)[0]
    late = [{"role": "user", "content": " ".join(WORDS * 9)}, {"role": "assistant", "content": "den"}]
    long = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": " ".join(WORDS * 9)}]
    file = tmp_path / "a.jsonl.gz"
    lines = [json.dumps({"messages": messages}) + "\n" for messages in (record["messages"], late, long)]
    file.write_bytes(gzip.compress("".join(lines).encode()))
    rows = ConversationRows(file, tokenizer, 64)
    stats = rows.stats
    assert (stats.num_conversations, stats.num_cut, stats.num_left_out, rows.num_rows) == (3, 1, 1, 2)
    assert all(len(part.unique()) > 1 for part in rows.batch(0, 2)[0])


def test_an_answer_ends_with_the_special_token_of_the_template() -> None:
    """None where a template ends answers with plain text."""
    tokenizer = chat_tokenizer()
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == "<|im_end|>"
    assert end_of_turn(chat_tokenizer(CHATML.replace("<|im_end|>", "###"))) is None


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
REFUSING = "{{ raise_exception('roles must alternate') }}"
LATE = CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<t>' }}")


@pytest.mark.parametrize(
    ("lines", "template", "says"),
    [
        (["{"], CHATML, "line 1 is not JSON"),
        ([[1]], CHATML, 'line 1 has no list "messages"'),
        ([{"text": "the cat"}], CHATML, 'line 1 has no list "messages"'),
        ([{"messages": [USER, ANSWER]}, {"messages": []}], CHATML, 'line 2 has no list "messages"'),
        ([{"messages": [{"role": "human", "content": "a"}]}], CHATML, "message 1 has the role 'human'; choose one of"),
        ([{"messages": [USER, {"role": "asistant", "content": "a"}]}], CHATML, "did you mean 'assistant'"),
        ([{"messages": [{"role": ["user"], "content": "a"}]}], CHATML, "has the role"),
        ([{"messages": ["a"]}], CHATML, "message 1 has the role None"),
        (
            [{"messages": [USER, {"role": "assistant", "content": None}]}],
            CHATML,
            "message 2 has a content that is not text",
        ),
        ([{"messages": [USER]}], CHATML, "has no answer of the assistant"),
        ([{"messages": [ANSWER]}], CHATML, "begins with an answer of the assistant"),
        ([{"messages": [USER, ANSWER]}], None, "no chat template; add the file chat_template.jinja"),
        ([{"messages": [USER, ANSWER]}], REFUSING, r"refuses the conversation \(roles must alternate"),
        ([{"messages": [USER, ANSWER]}], "{% for m in", "refuses the conversation"),
        ([{"messages": [USER, ANSWER]}], LATE, "does not begin an answer as it asks for one"),
        ([], CHATML, "holds no conversation"),
    ],
)
def test_what_is_no_conversation_is_one_sentence_with_its_line(lines, template, says: str, tmp_path) -> None:
    """Also a template that is missing, broken, or refuses; and a file that is empty or missing."""
    file = tmp_path / "a.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    with pytest.raises(DataError, match=says) as error:
        ConversationRows(file, chat_tokenizer(template), 64)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        ConversationRows(tmp_path / "none.jsonl", chat_tokenizer(template), 64)
