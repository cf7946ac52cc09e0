"""The formats of other programs that `export` writes, by name."""

COMPRESSED_TENSORS, GPTQ, BITSANDBYTES, GGUF = FORMATS = (
    "compressed-tensors",
    "gptq",
    "bitsandbytes",
    "gguf",
)
