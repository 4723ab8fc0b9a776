"""`pocketvlm chat`"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from pocketvlm.errors import BadInputError, UsageError
from pocketvlm.runtime.session import VlmSession
from pocketvlm.toolchain.commands.output import print_line
from pocketvlm.toolchain.commands.run import check_text
from pocketvlm.toolchain.interrupts import forget_interrupt

_HELP = (
    "/image FILE shows an image with the next question, /new forgets the conversation, /help shows this, "
    "Ctrl-C stops an answer, /quit or Ctrl-D ends"
)
_QUOTED = re.compile(r"""(["'])(.+)\1""")
_COMMAND = re.compile(r"/[a-z]+\Z")


def chat(bundle: Path, target: str | None) -> None:
    """Read questions from stdin, line by line, and answer them until it ends.

    On a terminal an unusable image or question is reported and the conversation goes on.

    Raises:
        PocketVLMError: see `VlmSession`; without a terminal, also for images and questions.
    """
    interactive = sys.stdin.isatty()
    with VlmSession.open(bundle, target=target) as session:
        conversation = _Conversation(session)
        if interactive:
            sys.stderr.write(_HELP + "\n")
        while True:
            if interactive:
                sys.stderr.write("> ")
                sys.stderr.flush()
            try:
                line = sys.stdin.readline()
            except KeyboardInterrupt:
                if not interactive:
                    raise
                # As in a shell: the line is dropped, the program goes on.
                forget_interrupt()
                sys.stderr.write("\n")
                continue
            if not line or line.strip() == "/quit":
                return
            try:
                conversation.take(line.strip())
            except (BadInputError, UsageError) as error:
                if not interactive:
                    raise
                sys.stderr.write(f"error: {error}\n")


class _Conversation:
    def __init__(self, session: VlmSession) -> None:
        self._session = session
        self._messages: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []

    def take(self, line: str) -> None:
        """One line: a command or a question; an empty one is passed over."""
        command, _, rest = line.partition(" ")
        if command == "/image":
            if not rest.strip():
                raise UsageError("/image needs a file", "write /image FILE")
            quoted = _QUOTED.fullmatch(rest.strip())
            # Not Path.expanduser, which raises for a user that does not exist.
            image = self._session.encode(Path(quoted[2] if quoted else os.path.expanduser(rest.strip())))  # noqa: PTH111
            # Waits until the file has been opened, so that an unusable one is named here.
            _ = image.tile_plan
            self._images.append({"type": "image", "image": image})
        elif command == "/new":
            self._messages, self._images = [], []
        elif command == "/help":
            sys.stderr.write(_HELP + "\n")
        elif _COMMAND.match(command):
            raise UsageError(f"unknown command {command}", "known: /image, /new, /help, /quit")
        elif line:
            self._answer(check_text(line))

    def _answer(self, question: str) -> None:
        asked = {"role": "user", "content": [*self._images, {"type": "text", "text": question}]}
        stream = self._session.chat([*self._messages, asked])
        try:
            for piece in stream:
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            # Stops this answer, not the program; what was said stays part of the conversation.
            stream.close()
            forget_interrupt()
        print_line()
        sys.stdout.flush()
        if stream.text:
            self._images = []
            self._messages += [asked, {"role": "assistant", "content": stream.text}]
