"""Models in GGUF files, as llama.cpp writes them: opened, translated, loaded.

``file`` opens and checks, ``architectures`` and ``config`` say which of mlx-lm's classes it is,
``names``, ``kinds`` and ``weights`` bring its tensors there, ``splits`` and ``tokenizer`` its
vocabulary, ``load`` does all of it. The format is the ``gguf`` package's business.
"""
