"""The formats of other programs that `export` writes, by name."""

HF, COMPRESSED_TENSORS, GPTQ, BITSANDBYTES, GGUF = FORMATS = (
    "hf",
    "compressed-tensors",
    "gptq",
    "bitsandbytes",
    "gguf",
)
