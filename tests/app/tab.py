"""A tab of the page, without a browser."""

import json

from frameflex.app.page import Folders, make_page

HERE = "http://127.0.0.1:8010"
PIECE = 5000


def page_of(recognizer, root, *, name="tiny", **options):
    """The page's application, with its folders below ``root``."""
    return make_page(recognizer, name=str(name), folders=Folders(root / "taught", root / "runs"), **options)


class Tab:
    """What a tab sends and gets."""

    def __init__(self, client):
        self._socket = client.websocket_connect("/talk", headers={"origin": HERE, "host": "127.0.0.1:8010"})

    def __enter__(self):
        self.socket = self._socket.__enter__()
        self.hello = self.socket.receive_json()
        return self

    def __exit__(self, *error):
        self._socket.__exit__(*error)

    def ask(self, **message):
        self.socket.send_text(json.dumps(message))

    def get(self, *types):
        """The next message of these types; others are left out, but an error is one."""
        while True:
            message = self.socket.receive_json()
            if message["type"] in types:
                return message
            assert message["type"] != "error", message

    def upload(self, data, *, video=1, **more):
        self.ask(type="upload", video=video)
        self.send_file(data)
        self.ask(type="uploaded", video=video, **more)

    def send_file(self, data):
        for start in range(0, len(data), PIECE):
            self.socket.send_bytes(data[start : start + PIECE])

    def error(self):
        """The text of the next error."""
        while True:
            message = self.socket.receive_json()
            if message["type"] == "error":
                return message["text"]
