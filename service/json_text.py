"""JSON answers whose texts may come from file names."""

import json
from typing import Any

from starlette.responses import JSONResponse


class JsonText(JSONResponse):
    """JSON of text that may not be valid UTF-8, as file names may be.

    A lone surrogate is escaped, where Starlette's own JSONResponse would fail.
    """

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        return text.encode(errors="backslashreplace")
