"""Passwords and signatures of addresses are in no message and no file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dofa.addresses import redact, redact_values, with_path
from dofa.errors import DataError

SECRET = "hunter2"
ADDRESSES = [
    f"https://me:{SECRET}@host/store/a.tif",
    f"https://{SECRET}@host/a.tif",
    f"s3://KEY:{SECRET}@bucket/store",
    f"https://host/a.tif?X-Amz-Signature={SECRET}&X-Amz-Date=1",
    f"https://acct.blob.core.windows.net/c/store?sv=2022&sig={SECRET}%3D",
    f"https://host/a.tif?token={SECRET}#page",
    f"/vsicurl/https://me:{SECRET}@host/a.tif?sig={SECRET}",
    f"/vsicurl?header.Authorization=Bearer%20{SECRET}&url=https%3A%2F%2Fhost%2Fa.tif",
    f"HTTPS://ME:{SECRET}@HOST/A.TIF",
    f"https://me:pa/{SECRET}@host/a.tif",
    f"PG:dbname=x user=me password={SECRET} host=h",
    f"PG:dbname=x password='{SECRET} {SECRET}'",
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("text", ["{}", "{}: cannot be read", "'{}' and \"{}\"", "({}), [{}]; {}.", "a\n{}\tb"])
def test_no_secret_is_shown_wherever_it_stands(address, text):
    told = text.format(*[address] * 3)
    assert SECRET not in redact(told)
    assert SECRET not in str(DataError(told))
    assert SECRET not in repr(DataError(told))
    assert SECRET not in str(redact_values({told: [told, (told, {"x": told})]}))
    assert redact(redact(told)) == redact(told)


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a/b.tif",
        "s3://bucket/x@2,3.tif",
        "/data/what?.tif",
        "C:\\data\\a.tif",
        "a note: 3 of 4 files (https://host/x.tif@0,64) are there",
        "me@example.org",
        "abfs://container@account.dfs.core.windows.net/store",
        'NETCDF:"x.nc":band',
        "",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


@given(st.text())
def test_any_text_is_shown_once_and_for_all(text):
    assert redact(redact(text)) == redact(text)


def test_two_signatures_of_one_address_compare_equal():
    assert redact("https://host/store?sig=a") == redact("https://host/store?sig=b")
    assert redact("https://host/store?sig=a") != redact("https://host/other?sig=a")


def test_a_path_goes_before_the_query():
    assert with_path("https://host/store?sig=a", "x/zarr.json") == "https://host/store/x/zarr.json?sig=a"
    assert with_path("s3://bucket/store/", "zarr.json") == "s3://bucket/store/zarr.json"
