"""The bundled benchmark: moving things, in classes that a single frame cannot tell apart."""
