"""Write the figures of README.md and benchmarks/README.md, from the files under benchmarks/results.

    python benchmarks/readme.py           rewrite the parts between `<!-- figures: NAME -->` and `<!-- end -->`
    python benchmarks/readme.py --check   change nothing; fail where a part is out of date or a number has no source

Text outside these parts is edited in the README itself, text inside in `readme_parts.py` and `benchmark_parts.py`, in
the function of that name. Numbers there come from a file by the functions of `readme_numbers.py`; every other number
must match ALLOWED.
"""

import argparse
import re
import textwrap
from pathlib import Path

import benchmark_parts
import readme_parts
from readme_numbers import CLOSE, OPEN

ROOT = Path(__file__).parent.parent
DOCUMENTS = {"README.md": readme_parts.PARTS, "benchmarks/README.md": benchmark_parts.PARTS}
PART = re.compile(r"(<!-- figures: (.+?) -->)(.*?)(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(
    r"(?<![A-Za-z])[-−]?[\d¼½¾⁰¹²³⁴-⁹][\d.,/⁰¹²³⁴-⁹]*"
    r"|\b(?:half|halves|thirds|quarters?|fifths?|tenths?|twice|thrice|double|dozen|hundreds?|thousands?|millions?"
    r"|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty)\b",
    re.IGNORECASE,
)
ALLOWED = {
    r"Python 3\.11|AISTATS 2019|Apache-2\.0|\*\*0\.1\.0\*\*": "versions, the paper's year, the licence",
    r"(Figure|Table|Theorem|Equation|§) ?\d+(\.\d+)?": "numbers of the paper's parts",
    r"CIFAR-10|H200|float32|float64": "names",
    r"1/I, half the printed 2/I|γ ≥ 0": "constants of the theorems",
    r"is 1, with ten classes 9": "hinge loss of the zero network: 1 for each of the classes that are not the label's",
    r"95 % intervals": "the level that `landscape table1` computes",
    r"risk of 0": "of MNIST's solutions, required in `readme_parts.findings`",
    r"3/4 of a GPU's memory, or half of the machine's": "the default of --memory",
    r"N = [56]0,000|I = 50,000|60,000 x|x 2 x 3": "the sizes of the GPU's sum; a multiply-add is 2, solutions are 3",
    r"128 hidden values x 128 examples take 2 x 64 KiB": "a tile for example, of float32 values",
    r"the same bits twice": "a check of every surface",
    r"exit code 75": "EX_TEMPFAIL; tests/test_readme.py runs the jobs with it",
}
"""What may stand in the text without a file behind it (regular expressions), and why."""


def visible(text: str) -> str:
    """The text without code, comments and targets of links."""
    for hidden in (r"```.*?```", r"`[^`]*`", r"<!--.*?-->", r"\]\([^)]*\)"):
        text = re.sub(hidden, " ", text, flags=re.DOTALL)
    return text


def untraced(text: str) -> list[str]:
    """Numbers, in figures and words, that come from no file and are not allowed; each with what stands around it."""
    text = re.sub(f"{OPEN}[^{CLOSE}]*{CLOSE}", "", visible(text))
    text = re.sub(r"\s+", " ", text)
    for allowed in ALLOWED:
        text = re.sub(allowed, "", text)
    return [text[max(0, m.start() - 30) : m.end() + 30].strip() for m in NUMBER.finditer(text)]


def wrapped(text: str) -> str:
    """Paragraphs and items filled to 120 columns, lines of tables as they are; "I = 10" and "± 0.1" are not parted."""
    paragraphs: list[str] = []
    for line in text.strip().splitlines():
        goes_on = (
            paragraphs and line and paragraphs[-1] and not line.startswith(("|", "* ")) and paragraphs[-1][0] != "|"
        )
        if goes_on:
            paragraphs[-1] += " " + line.strip()
        else:
            paragraphs.append(line.strip())
    return "\n".join(_filled(paragraph) for paragraph in paragraphs)


def _filled(paragraph: str) -> str:
    if paragraph.startswith("|"):
        return paragraph
    tight = re.sub(r" ([=±≤%x×]|MB|GiB|ms|µs|ps|s|min)(?=[\s.,;:)])", "\N{NO-BREAK SPACE}\\1", paragraph)
    tight = re.sub(r"([=±≤x×]) (?=\S)", "\\1\N{NO-BREAK SPACE}", tight)
    indent = "  " if paragraph.startswith("* ") else ""
    filled = textwrap.fill(tight, 120, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
    return filled.replace("\N{NO-BREAK SPACE}", " ")


def rewritten(text: str, made: dict[str, str]) -> str:
    """The document with every part made anew; a part inside a line stays inside it.

    Raises:
        KeyError: The document names a part that does not exist.
    """

    def part(match: re.Match) -> str:
        begin, name, old, end = match.groups()
        new = re.sub(f"[{OPEN}{CLOSE}]", "", made[name])
        return f"{begin}\n{wrapped(new)}\n{end}" if old.startswith("\n") else f"{begin}{new}{end}"

    return PART.sub(part, text)


def faults(text: str, made: dict[str, str]) -> list[str]:
    """Numbers without a source, in the document and in its parts; parts that the document lacks or does not show.

    A line that begins with a comment is HTML to Markdown: a part inside a line must not begin it.
    """
    hidden = [f"a line begins with {line[:50]}" for line in text.splitlines() if re.match(r" *<!-- fig.*--> *\S", line)]
    lacking = sorted(made.keys() - {match[2] for match in PART.finditer(text)})
    outside = untraced(PART.sub(" ", text))
    inside = [f"{fault} (part {name})" for name, part in made.items() for fault in untraced(part)]
    return (
        hidden + [f"no part {name}" for name in lacking] + [f"no source: … {fault} …" for fault in [*outside, *inside]]
    )


def main() -> None:
    """Rewrite or check both documents."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something would change")
    check, found = parser.parse_args().check, []
    for name, functions in DOCUMENTS.items():
        path, made = ROOT / name, {part: function() for part, function in functions.items()}
        text = path.read_text()
        new = rewritten(text, made)
        found += [f"{name}: {fault}" for fault in faults(new, made)]
        if check and new != text:
            lines = [line for line in new.splitlines() if line not in text.splitlines()]
            found.append(
                f"{name}: out of date; run python benchmarks/readme.py. The files say:\n  " + "\n  ".join(lines)
            )
        elif new != text:
            path.write_text(new)
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
