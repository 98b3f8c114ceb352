"""Networks of the tokenizers. Each gives an encoder and a decoder with one interface:

    encoder.forward_features(x_B3THW, state=None) -> [B, width, t, h, w]
    encoder(x_B3THW, state=None) -> [B, out_channels, t, h, w]   (the features through a last 1x1x1)
    decoder(codes_BCthw, state=None) -> [B, 3, T, H, W]

with T = 1 + s_t (t - 1), H = s_h h, W = s_w w; `state` as in `vidtok.nets.layers`. Both have `stride` (s_t, s_h, s_w)
and `activation_elems_per_pixel`, how many values are alive at once per pixel of a clip; the encoder has `width`.
"""

from vidtok.nets import magvit2, patch

# name: (encoder class, decoder class)
NETS = {
    "magvit2": (magvit2.Encoder, magvit2.Decoder),
    "patch": (patch.Encoder, patch.Decoder),
}
