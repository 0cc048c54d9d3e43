"""Every function of the library is called with its types and shapes checked."""

from jaxtyping import install_import_hook

install_import_hook("llmbook", "beartype.beartype")
