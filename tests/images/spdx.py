"""The SPDX project's own check of a bill of materials."""

from typing import Any

from spdx_tools.spdx.parser.error import SPDXParsingError
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document


def problems(document: dict[str, Any]) -> list[str]:
    """What SPDX 2.3 refuses in a document; empty when it is valid."""
    try:
        parsed = JsonLikeDictParser().parse(document)  # type: ignore[no-untyped-call]  # theirs
    except SPDXParsingError as error:
        return list(error.get_messages())  # type: ignore[no-untyped-call]  # theirs
    return [message.validation_message for message in validate_full_spdx_document(parsed)]
