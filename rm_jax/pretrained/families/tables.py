"""Names of tensors that most decoders share: Hugging Face's, and those of GGUF files.

The keys of `DECODER` and `DECODER_LAYER` are modules of `Decoder` and `DecoderLayer` in
models/decoder.py.
"""

DECODER = {
  "embed": "embed_tokens",
  "norm": "norm",
}
DECODER_LAYER = {
  "attention_norm": "input_layernorm",
  "q": "self_attn.q_proj",
  "k": "self_attn.k_proj",
  "v": "self_attn.v_proj",
  "o": "self_attn.o_proj",
  "q_norm": "self_attn.q_norm",
  "k_norm": "self_attn.k_norm",
  "mlp_norm": "post_attention_layernorm",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
}
# The language-model head, and a buffer that old versions of transformers saved.
IGNORED = r"lm_head\.|(.*\.)?rotary_emb\.inv_freq$"

# GGUF name -> (Hugging Face name, a letter for each dimension): V size of the vocabulary, D width
# of the model, F of the MLP, H of a head, Q of all query heads together, K of all key or value
# heads together.
GGUF_OUTER = {
  "token_embd.weight": ("model.embed_tokens.weight", "VD"),
  "output_norm.weight": ("model.norm.weight", "D"),
}
GGUF_HEAD = {"output.weight": ("lm_head.weight", "VD")}
GGUF_LAYER = {
  "attn_norm.weight": ("input_layernorm.weight", "D"),
  "attn_q.weight": ("self_attn.q_proj.weight", "QD"),
  "attn_k.weight": ("self_attn.k_proj.weight", "KD"),
  "attn_v.weight": ("self_attn.v_proj.weight", "KD"),
  "attn_output.weight": ("self_attn.o_proj.weight", "DQ"),
  "ffn_norm.weight": ("post_attention_layernorm.weight", "D"),
  "ffn_gate.weight": ("mlp.gate_proj.weight", "FD"),
  "ffn_up.weight": ("mlp.up_proj.weight", "FD"),
  "ffn_down.weight": ("mlp.down_proj.weight", "DF"),
}
GGUF_QKV_BIAS = {
  "attn_q.bias": ("self_attn.q_proj.bias", "Q"),
  "attn_k.bias": ("self_attn.k_proj.bias", "K"),
  "attn_v.bias": ("self_attn.v_proj.bias", "K"),
}
GGUF_OUT_BIAS = {"attn_output.bias": ("self_attn.o_proj.bias", "D")}
GGUF_MLP_BIAS = {
  "ffn_gate.bias": ("mlp.gate_proj.bias", "F"),
  "ffn_up.bias": ("mlp.up_proj.bias", "F"),
  "ffn_down.bias": ("mlp.down_proj.bias", "D"),
}
GGUF_QK_NORM = {
  "attn_q_norm.weight": ("self_attn.q_norm.weight", "H"),
  "attn_k_norm.weight": ("self_attn.k_norm.weight", "H"),
}
