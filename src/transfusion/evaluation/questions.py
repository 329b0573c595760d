"""Questions with choices, from a JSONL file: {"question": "...", "choices": ["...", "..."], "answer": 0}"""

from dataclasses import dataclass
from pathlib import Path

from transfusion.files import parse_json, read_text


@dataclass(frozen=True)
class Question:
    """A question with its choices; `answer` is the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: str | Path) -> tuple[Question, ...]:
    """The questions of a JSONL file, one a line.

    Raises:
        ValueError: the file is missing or empty, or a line has another form; the message names it.
    """
    path, questions = Path(path), []
    try:
        lines = read_text(path).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read questions from {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            plain = parse_json(line)
            question = Question(plain["question"], tuple(plain["choices"]), plain["answer"])
            if (
                not all(isinstance(text, str) for text in (question.question, *question.choices))
                or type(question.answer) is not int
            ):
                raise ValueError("question and choices are text, the answer is a whole number")
            if len(question.choices) < 2 or not all(question.choices) or not 0 <= question.answer < len(question.choices):
                raise ValueError("give at least two choices, none of them empty, and the index of one as answer")
        except (ValueError, TypeError, KeyError) as error:
            form = '{"question": "...", "choices": ["...", "..."], "answer": 0}'
            raise ValueError(f"{path.name}:{number}: {error}; a line is {form}") from error
        questions.append(question)
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return tuple(questions)
