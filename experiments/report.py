"""Write the generated blocks of Markdown files from the rows below docs/results, or check them.

A block begins with <!-- generated: COMMAND --> and ends with <!-- end -->. COMMAND is tables,
figures or verdict, with the arguments of that script, or text FILE. Run it from the repository's
root, where the paths start.
"""

if __name__ == "__main__":
    import _root  # noqa: F401

import contextlib
import io
import os
import re
import shlex
import sys
from pathlib import Path

from experiments import figures, markup, tables, verdict
from utils import cli, files
from utils.errors import UserError

BEGIN, END = "<!-- generated: ", "<!-- end -->"
BLOCK = re.compile(rf"({BEGIN}(.+) -->\n)((?:(?!<!-- ).*\n)*)(?={END})")
COMMANDS = ("tables", "figures", "verdict", "text")
PAGES = ["RESULTS.md", "docs/results/README.md"]


def render(command: str, folder: Path, check: bool) -> str:
    """Return what a block shows in a file of `folder`, to which links to figures are relative.

    Outdated figures are drawn again, or named in a check.
    """
    name, *words = shlex.split(command) or [""]
    if name == "tables":
        args, made, found = tables.requested(words)
        pieces = [markup.markdown(table) for table in made]
        if found.notices:
            script = f"`python experiments/tables.py {args.folder}`"
            pieces.append(f"Rows left out: {len(found.notices)}. {script} lists them.\n")
        return "\n".join(pieces)
    if name == "figures":
        args, made, found = figures.requested(words)
        pieces = []
        for table in made:
            path = args.out / f"{table.name}.png"
            link = Path(os.path.relpath(path, folder)).as_posix()
            pieces.append(f"![{table.title}]({link})\n")
            if path.is_file() and figures.digest(table).encode() in path.read_bytes():
                continue
            if check:
                pieces.append("outdated: drawn from other numbers or with another title\n")
            else:
                figures.write(args, table, found, "png")
        return "\n".join(pieces)
    if name == "verdict":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            verdict.main(words)
        return f"```\n{printed.getvalue()}```\n"
    if name == "text":
        return f"```\n{Path(*words).read_text(encoding='utf-8').rstrip()}\n```\n"
    raise UserError(f"{name!r} is no command; choose from {', '.join(COMMANDS)}")


def renew(page: Path, check: bool) -> list[str]:
    """Write the blocks of a Markdown file unless `check`; return those that differed.

    Raises UserError for another file and for a block that cannot be made.
    """
    if not page.is_file():
        raise UserError(f"{page}: no such file; give one, or run this from the repository's root")
    text, differ = page.read_text(encoding="utf-8", errors="replace"), []
    if "\ufffd" in text:
        raise UserError(f"{page}: not UTF-8; give a Markdown file in UTF-8")
    if text.count(BEGIN) != len(BLOCK.findall(text)):
        raise UserError(f"{page}: a line {BEGIN}... --> has no {END} after it; add that line")

    def replacement(block: re.Match[str]) -> str:
        where = f"{page}, line {text.count(chr(10), 0, block.start()) + 1}"
        try:
            content = render(block[2], page.parent, check) + "\n"  # a table ends with an empty line
        except (UserError, ValueError, FileNotFoundError) as error:  # also wrong quotes, no UTF-8
            raise UserError(f"{where}: {error}") from error
        if content != block[3]:
            differ.append(f"{where}: {block[2]}")
        return block[1] + content

    renewed = BLOCK.sub(replacement, text)
    if differ and not check:
        files.write_text(page, renewed)
    return differ


def main(argv: list[str] | None = None) -> int:
    """Write the blocks, or check them: exit code 1 if one differs."""
    parser = cli.OneLineParser(__doc__)
    add = parser.add_argument
    add("pages", nargs="*", default=PAGES, metavar="FILE", help="Markdown files")
    add("--check", action="store_true", help="write nothing; fail if a block or figure differs")
    args = parser.parse_args(argv)
    differ = 0
    for page in map(Path, args.pages):
        for where in renew(page, args.check):
            print(where, "differs from its rows" if args.check else "written", file=sys.stderr)
            differ += 1
    return int(args.check and differ > 0)


if __name__ == "__main__":
    cli.run(main)
