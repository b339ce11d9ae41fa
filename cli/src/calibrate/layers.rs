//! How much the model's loss feels of each layer's cache, by its gradients.

use codec::KvLayout;

use super::fisher::Fisher;
use super::moments::Side;

/// A layer's attention counts within these bounds, whatever the gradients say.
const LEAST: f64 = 0.05;
const MOST: f64 = 20.0;

/// One layer, keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Layer {
    /// Trace of the Fisher information: mean squared gradients, summed over features.
    pub(super) trace: [f64; 2],
    /// The same with each feature's variance: what losing the layer would do to the loss, to second order.
    pub(super) felt: [f64; 2],
}

/// All layers.
pub(super) fn layers(layout: &KvLayout, gradients: &Fisher, (keys, values): (&Side, &Side)) -> Vec<Layer> {
    let per_layer = layout.kv_heads * layout.head_dim;
    let mut layers = vec![Layer::default(); layout.layers];
    for (side, (gradients, moments)) in
        [(&gradients.keys, keys), (&gradients.values, values)].iter().enumerate()
    {
        for (feature, (gradient, variance)) in gradients.iter().zip(moments.variances()).enumerate() {
            let layer = &mut layers[feature / per_layer];
            layer.trace[side] += gradient;
            layer.felt[side] += gradient * variance;
        }
    }
    layers
}

/// What attention in each layer is worth, 1 on average: how much the model's loss feels of that layer's cache.
pub(super) fn weights(layers: &[Layer]) -> Vec<f32> {
    let felt = |layer: &Layer| layer.felt.iter().sum::<f64>();
    let mean = layers.iter().map(felt).sum::<f64>() / layers.len() as f64;
    layers.iter().map(|layer| (felt(layer) / mean).clamp(LEAST, MOST) as f32).collect()
}
