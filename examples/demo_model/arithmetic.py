"""Sums, differences and products, worked digit by digit so that every step is one small fact."""

from __future__ import annotations

import random

from examples.demo_model.sample import Sample, answer, user

_ASK = (
    "What is {}?",
    "{}",
    "Compute {}.",
    "How much is {}?",
    "{} = ?",
    "Please calculate {}.",
    "Can you tell me what {} is?",
)


def is_held_out(a: int, operator: str, b: int) -> bool:
    """Whether a problem is kept for evaluation: one in ten, by a fixed rule."""
    return (a * 7919 + b * 104729 + ord(operator) * 31) % 97 < 10


def problem(rng: random.Random, held_out: bool, *, two_digits: bool = False) -> tuple[int, str, int]:
    """Operands below 100, differences not negative, products with one digit; two_digits: both have two, no products."""
    while True:
        operator = rng.choice("+-") if two_digits else rng.choices("+-*", weights=(5, 5, 1))[0]
        low = 10 if two_digits or rng.random() < 0.75 else 0
        a, b = rng.randint(low, 99), rng.randint(low, 99)
        if operator == "*":
            a, b = rng.randint(2, 99), rng.randint(2, 9)
        if operator == "-" and a < b:
            a, b = b, a
        if is_held_out(a, operator, b) == held_out:
            return a, operator, b


def result(a: int, operator: str, b: int) -> int:
    """The right answer."""
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def working(a: int, operator: str, b: int) -> str:
    """The steps as the model writes them: ones first, then tens, then the digits put together."""
    total = result(a, operator, b)
    tens, ones = a // 10, a % 10
    if operator == "*":
        low = ones * b
        carry = low // 10
        high = tens * b
        return (
            f"{ones} * {b} = {low}: write {low % 10}, carry {carry}. {tens} * {b} = {high}, {high} + {carry} ="
            f" {high + carry}. Together {total}."
        )
    other_tens, other_ones = b // 10, b % 10
    if operator == "+":
        low = ones + other_ones
        carry = low // 10
        return (
            f"Ones: {ones} + {other_ones} = {low}: write {low % 10}, carry {carry}. "
            f"Tens: {tens} + {other_tens} + {carry} = {tens + other_tens + carry}. Together {total}."
        )
    borrow = int(ones < other_ones)
    return (
        f"Ones: {ones + 10 * borrow} - {other_ones} = {ones + 10 * borrow - other_ones}, borrow {borrow}. "
        f"Tens: {tens} - {other_tens} - {borrow} = {tens - other_tens - borrow}. Together {total}."
    )


def ask(rng: random.Random, a: int, operator: str, b: int) -> str:
    """A question for a problem."""
    return rng.choice(_ASK).format(f"{a} {operator} {b}")


def arithmetic(rng: random.Random, held_out: bool) -> Sample:
    """One problem with thinking, or one to three without, whose answers show the steps."""
    if held_out or rng.random() < 0.65:
        a, operator, b = problem(rng, held_out, two_digits=held_out)
        final = f"{a} {operator} {b} = {result(a, operator, b)}"
        messages = [user(ask(rng, a, operator, b)), answer(final, working(a, operator, b))]
        return Sample(family="arithmetic", messages=messages, thinking=True)
    messages = []
    for _ in range(rng.randint(1, 3)):
        a, operator, b = problem(rng, held_out)
        final = f"{working(a, operator, b)} So {a} {operator} {b} = {result(a, operator, b)}"
        messages += [user(ask(rng, a, operator, b)), answer(final)]
    return Sample(family="arithmetic", messages=messages)


def sums(rng: random.Random, held_out: bool) -> Sample:
    """One sum or difference of two digits each, with thinking."""
    a, operator, b = problem(rng, held_out, two_digits=True)
    messages = [
        user(ask(rng, a, operator, b)),
        answer(f"{a} {operator} {b} = {result(a, operator, b)}", working(a, operator, b)),
    ]
    return Sample(family="sums", messages=messages, thinking=True)
