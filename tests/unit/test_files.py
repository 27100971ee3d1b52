"""Errors of the system that libraries hide in exceptions of their own."""

from __future__ import annotations

import errno
import re

import pytest

from llamafarm.files import system_errors


def test_what_tokenizers_raises_for_a_folder_that_is_not_there_is_an_oserror(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(Exception, match="os error") as bare:
        tokenizer.save(str(tmp_path / "missing" / "tokenizer.json"))
    assert not isinstance(bare.value, OSError), "once this is one, system_errors can go"
    with pytest.raises(FileNotFoundError) as found, system_errors():
        tokenizer.save(str(tmp_path / "missing" / "tokenizer.json"))
    assert found.value.errno == errno.ENOENT


@pytest.mark.parametrize("error", [ValueError("no number"), OSError(errno.ENOSPC, "full"), KeyError("os error")])
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error), match=re.escape(str(error))) as found, system_errors():
        raise error
    assert found.value is error
