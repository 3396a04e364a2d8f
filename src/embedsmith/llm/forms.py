"""In which form a server is asked for its answers: the strictest that it takes, found out by asking."""

from __future__ import annotations

import re

from embedsmith.llm import Prompt

FORMS = ("json_schema", "json_object", "none")  # of response_format, the strictest first
NAMED = re.compile(r"response_format|json_schema|json_object|structured.output", re.IGNORECASE)


class Forms:
    """The form that calls are made in, for all of them and for single ones.

    A refusal is about the form or about the prompt (too long, against the rules of the server). All calls step down
    where it names the form; where nothing has succeeded in a form yet, the refused call alone does, and the others
    follow if it is answered. In a form that has worked it is about the prompt: no other call is asked in simpler terms.
    """

    def __init__(self) -> None:
        self._present = 0
        self._worked: set[int] = set()
        self._alone: dict[str, int] = {}  # calls that are tried in a simpler form, by fingerprint

    def find(self, prompt: Prompt) -> str:
        """Return the form that the next try of a call takes."""
        return FORMS[max(self._present, self._alone.get(prompt.fingerprint, 0))]

    def accept(self, prompt: Prompt, form: str) -> None:
        """Note that a call in this form was answered."""
        self._worked.add(FORMS.index(form))
        alone = self._alone.pop(prompt.fingerprint, None)
        if alone is not None and self._present not in self._worked:
            self._present = FORMS.index(form)

    def refuse(self, prompt: Prompt, form: str, message: str) -> bool:
        """Say whether a call that was refused in this form is worth a try in a simpler one."""
        if self.find(prompt) != form:
            return True  # another call has stepped down since
        place, named = FORMS.index(form), NAMED.search(message) is not None
        if place + 1 == len(FORMS) or (place in self._worked and not named):
            self._alone.pop(prompt.fingerprint, None)
            return False
        if named and place not in self._worked:
            self._present = place + 1
        else:
            self._alone[prompt.fingerprint] = place + 1
        return True
