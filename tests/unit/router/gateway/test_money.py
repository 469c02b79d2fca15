"""Money and keys: exact amounts, and texts of keys."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.accounts_config import PriceConfig
from baleen.errors import ConfigError
from router.gateway.accounts.money import PICO, Price, PriceList, Usage, parse_amount, shown
from router.gateway.accounts.secret import digest, key_id, matches, new_secret

PLACES = st.decimals(min_value=0, max_value=999_999, places=6)
TOKENS = st.integers(0, 10**6)


@given(hit=PLACES, miss=PLACES, output=PLACES, tokens=st.tuples(TOKENS, TOKENS, TOKENS))
def test_a_cost_is_what_decimals_say_to_the_last_place(hit, miss, output, tokens):
    price = PriceConfig(model="m", input_hit=str(hit), input_miss=str(miss), output=str(output))
    cost = PriceList([price]).of("M").cost(Usage(*tokens))
    expected = (hit * tokens[0] + miss * tokens[1] + output * tokens[2]) / 10**6
    assert Decimal(cost) == expected * PICO and Decimal(shown(cost)) == expected


@given(prompt=TOKENS, output=TOKENS, hit=TOKENS, completion=TOKENS, prices=st.tuples(TOKENS, TOKENS, TOKENS))
def test_no_usage_costs_more_than_what_was_reserved(prompt, output, hit, completion, prices):
    price = Price(*prices)
    usage = Usage(min(hit, prompt), prompt - min(hit, prompt), min(completion, output))
    assert price.cost(usage) <= price.most(prompt, output)


@pytest.mark.parametrize(
    ("text", "picos"), [("110", 110 * PICO), ("0.5", PICO // 2), ("0.000000000001", 1), ("1000000", 10**18)]
)
def test_amounts_are_read_exactly_and_shown_as_they_were(text, picos):
    assert parse_amount(text, name="x") == picos
    assert Decimal(shown(picos)) == Decimal(text) and parse_amount(shown(picos), name="x") == picos


@pytest.mark.parametrize("text", ["", "0", "-1", "1e3", "0.0000000000001", "1000001", "1,5", "½", "٣", "nan", " 1"])
def test_what_is_no_amount_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="balance is"):
        parse_amount(text, name="balance")


@pytest.mark.parametrize("value", ["", "-1", "1e-3", "0.0000001", "1234567", ".5", "5.", "٣"])
def test_what_is_no_price_is_refused_by_name(value):
    with pytest.raises(ConfigError, match="input_miss of the price of m is"):
        PriceConfig(model="m", input_miss=value)


def test_prices_have_one_currency_and_name_a_model_once():
    with pytest.raises(ConfigError, match="'m' twice"):
        PriceList([PriceConfig(model="m"), PriceConfig(model="M")])
    with pytest.raises(ConfigError, match="CNY, USD"):
        PriceList([PriceConfig(model="m"), PriceConfig(model="n", currency="CNY")])


def test_the_first_name_with_a_price_has_it():
    prices = PriceList([PriceConfig(model="m", output="1"), PriceConfig(model="m-thinking", output="2")])
    assert prices.of("M-Thinking", "m").output == 2 * 10**6
    assert prices.of("alias", "m").output == 10**6
    assert prices.of("other") == Price()


def test_amounts_are_shown_with_two_places_or_more():
    assert [shown(picos) for picos in (0, 10 * PICO, PICO // 8, -PICO, 1)] == [
        "0.00",
        "10.00",
        "0.125",
        "-1.00",
        "0.000000000001",
    ]


def test_keys_differ_and_show_their_id():
    secrets = {new_secret() for _ in range(100)}
    assert len({key_id(secret) for secret in secrets}) == 100
    assert all(matches(secret, digest(secret)) for secret in secrets)


def test_a_key_with_one_wrong_character_is_no_key():
    secret = new_secret()
    for place in range(len(secret)):
        wrong = secret[:place] + ("0" if secret[place] != "0" else "1") + secret[place + 1 :]
        assert key_id(wrong) is None
    assert [key_id(text) for text in ("", "sk-", secret.upper(), secret + "0", f" {secret}", secret + "\n")] == [
        None
    ] * 6


def test_nobodys_key_matches_nothing():
    secret = new_secret()
    assert not matches(secret, None) and not matches(secret, digest(new_secret()))
