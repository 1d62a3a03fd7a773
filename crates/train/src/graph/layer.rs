//! One decoder layer, forward and back.
//!
//! ```text
//! x ──┬─ norm ─ qkv ─ attention ─ o ─┬─ + ── mid ──┬─ norm ─ gate·up ─ swiglu ─ down ─┬─ + ── y
//!     └──────────────────────────────┘             └──────────────────────────────────┘
//! ```
//! The backward pass needs x, qkv, the attention's output, mid and gate·up; everything between is cheap to form again.

use super::{attention::Attention, linear::Linears, matrix::Matrix, norm::RmsNorm, rope::Rope, swiglu};

/// The weights of one layer.
#[derive(Debug)]
pub struct Layer {
    /// Before attention.
    pub input_norm: RmsNorm,
    /// q, k and v, stacked.
    pub qkv: Linears,
    /// Shapes of the attention.
    pub attention: Attention,
    /// o
    pub o: Linears,
    /// Before the MLP.
    pub post_norm: RmsNorm,
    /// gate and up, stacked.
    pub gate_up: Linears,
    /// down
    pub down: Linears,
}

/// What the backward pass of a layer reads.
#[derive(Debug)]
pub struct Saved {
    x: Matrix,
    qkv: Matrix,
    attended: Matrix,
    mid: Matrix,
    gate_up: Matrix,
}

impl Layer {
    /// The stacks of linears, in the base's order.
    pub fn linears(&self) -> [&Linears; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }

    /// f32 values that [`Saved`] holds for one token.
    pub fn saved_per_token(&self) -> usize {
        2 * self.qkv.inputs() + self.attention.input_width() + self.attention.output_width() + self.gate_up.outputs()
    }

    /// x (tokens, hidden) -> (tokens, hidden), and what the way back needs.
    ///
    /// # Errors
    /// What candle's product reports.
    pub fn forward(&self, x: Matrix, starts: &[usize], rope: &Rope) -> candle_core::Result<(Matrix, Saved)> {
        let qkv = self.qkv.forward(&self.input_norm.forward(&x))?;
        let attended = self.attention.forward(&qkv, starts, rope);
        let mut mid = self.o.forward(&attended)?;
        mid.add(&x);
        let gate_up = self.gate_up.forward(&self.post_norm.forward(&mid))?;
        let mut y = self.down.forward(&swiglu::forward(&gate_up))?;
        y.add(&mid);
        Ok((y, Saved { x, qkv, attended, mid, gate_up }))
    }

    /// What each of [`Layer::linears`] read on the way forward.
    pub fn inputs(&self, saved: &Saved) -> [Matrix; 4] {
        let Saved { x, attended, mid, gate_up, .. } = saved;
        [self.input_norm.forward(x), attended.clone(), self.post_norm.forward(mid), swiglu::forward(gate_up)]
    }

    /// The gradient of x from that of y, both (tokens, hidden). What learns gathers its own gradient.
    ///
    /// # Errors
    /// What candle's product reports.
    pub fn backward(&self, saved: Saved, dy: Matrix, starts: &[usize], rope: &Rope) -> candle_core::Result<Matrix> {
        let Saved { x, qkv, attended, mid, gate_up } = saved;
        let d_activated = self.down.backward(&swiglu::forward(&gate_up), &dy)?;
        let d_gate_up = swiglu::backward(&gate_up, &d_activated);
        let d_normed = self.gate_up.backward(&self.post_norm.forward(&mid), &d_gate_up)?;
        let mut d_mid = dy;
        self.post_norm.backward_add(&mid, &d_normed, &mut d_mid);

        let d_attended = self.o.backward(&attended, &d_mid)?;
        let d_qkv = self.attention.backward(&qkv, &d_attended, starts, rope);
        let d_normed = self.qkv.backward(&self.input_norm.forward(&x), &d_qkv)?;
        let mut dx = d_mid;
        self.input_norm.backward_add(&x, &d_normed, &mut dx);
        Ok(dx)
    }
}
