"""JSON answers whose texts may come from file names."""

import json
from typing import Any

from starlette.responses import JSONResponse


class JsonText(JSONResponse):
    """Starlette's JSONResponse for text that may not be valid UTF-8, as file names may be: a lone
    surrogate is escaped, where Starlette's own would fail."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        return text.encode(errors="backslashreplace")
