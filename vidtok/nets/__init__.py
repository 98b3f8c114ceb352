"""Networks of the tokenizers: pairs of an encoder and a decoder with one interface:

    encoder.forward_features(x_B3THW, state=None) -> [B, width, t, h, w]
    encoder(x_B3THW, state=None, hidden=True): the same, compiled if the encoder is
    encoder(x_B3THW, state=None) -> [B, out_channels, t, h, w]
    decoder(codes_BCthw, state=None) -> [B, 3, T, H, W]

with T = 1 + s_t (t - 1), H = s_h h, W = s_w w; `state` as in `vidtok.nets.layers`. Both have `stride` (s_t, s_h, s_w)
and `activation_elems_per_pixel`, the number of activation elements alive at once per pixel of a clip; the encoder has
`width` and `feature_layer`, the name of the layer that its features come from; None, the one before the latents.
"""

from vidtok.nets import layers, magvit2

# name: function of (encoder's output channels, channels of the codes, **arguments of the config) -> (encoder, decoder)
NETS = {"magvit2": magvit2.build_net, "patch": layers.build_net}
