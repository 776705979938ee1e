"""Speech-text language models on interleaved data, in JAX (Zeng et al., arXiv 2411.17607).

Data flows one way; a verb's output is the next verb's input:

    wav_to_mel -> mel_to_codes -> text_to_codes -> codes_to_ids -> document_to_interleaved
               -> ids_to_logits -> codes_to_mel -> mel_to_wav       (wav_to_reply = the whole chain)

Nouns in order: samples -> mel frames -> codes -> ids -> logits -> losses and metrics.
docs/architecture.md says which room a line of code belongs in, docs/glossary.md which word it uses.
"""

__version__ = "0.1.0"
