"""Verifiers with every fault, for the tests of rows 20 to 23: what they do depends on the response."""

import faulthandler
import os
import threading


def faulty(response: str, answer: str) -> float:
    """1.0 if the response is the answer; otherwise does what the response asks for."""
    match response:
        case "hang":
            while True:
                pass
        case "hang in C":
            return float(9**9**9)
        case "wait":
            threading.Event().wait()
        case "exit":
            os._exit(5)
        case "memory":
            return float(len(bytes(3 * 10**9)))
        case "segfault":
            faulthandler._sigsegv()
        case "raise":
            raise ValueError("as asked")
    return float(response == answer)


def broken(response: str, answer: object) -> float:
    """Scores nothing."""
    raise RuntimeError("this verifier is broken")
