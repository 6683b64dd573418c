"""Google's token endpoint, and the key of a service account that it knows (RFC 7523)."""

import base64
import json
import urllib.parse

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

ACCOUNT = "outgate@project.iam.gserviceaccount.com"


class TokenEndpoint:
    """Issues one token, to whoever signs with the key."""

    def __init__(self, token: str):
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._token = token

    def account(self) -> str:
        """The key as Google hands it out."""
        pem = self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return json.dumps({"type": "service_account", "project_id": "project", "private_key_id": "k1", "client_email": ACCOUNT,
                           "private_key": pem.decode(), "token_uri": "https://oauth2.googleapis.com/token"})

    def issue(self, form: bytes) -> tuple[int, dict]:
        """Status and answer to a request."""
        said = dict(urllib.parse.parse_qsl(form.decode()))
        try:
            signed, signature = said["assertion"].rsplit(".", 1)
            self._key.public_key().verify(decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
            claims = json.loads(decoded(signed.split(".")[1]))
        except (KeyError, ValueError, InvalidSignature):
            return 400, {"error": "invalid_grant"}
        if claims.get("iss") != ACCOUNT or not claims.get("scope", "").startswith("https://www.googleapis.com/auth/"):
            return 400, {"error": "invalid_scope"}
        return 200, {"access_token": self._token, "token_type": "Bearer", "expires_in": 3600}


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
