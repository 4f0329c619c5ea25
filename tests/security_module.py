"""A security module for tests: Debian's SoftHSM, with one token for the whole process.

A PKCS#11 library reads where its tokens are once in a process, so that every test shares them, each with keys of its own.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pkcs11

PIN = "7391-5520"
TOKEN = "umbel-tests"
MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
MISSING = "the tests need Debian's softhsm2: apt-get install softhsm2"
CONFIGURATION = "SOFTHSM2_CONF"


class SecurityModule:
    """A token, and what its owner does with it.

    Args:
        directory: Where its files go.
    """

    def __init__(self, directory: Path) -> None:
        tokens = directory / "tokens"
        tokens.mkdir()
        self.configuration = directory / "softhsm2.conf"
        self.configuration.write_text(f"directories.tokendir = {tokens}\nlog.level = ERROR\n")
        os.environ[CONFIGURATION] = str(self.configuration)
        self._keys = 0
        self.make_token(TOKEN)

    def make_token(self, label: str) -> None:
        """Make another token; a process sees it that enters the module again."""
        self._tool("--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", PIN)
        pkcs11.lib(str(MODULE)).reinitialize()

    def import_key(self, pem: Path, label: str, token: str = TOKEN) -> None:
        """Put a private key, PKCS#8, under a label."""
        self._keys += 1
        self._tool(
            "--import", str(pem), "--token", token, "--label", label, "--id", f"{self._keys:04x}", "--pin", PIN
        )  # fmt: skip

    def _tool(self, *words: str) -> None:
        ran = subprocess.run(["softhsm2-util", *words], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
