use super::*;

const CHUNK: usize = 1 << 15;

#[repr(C)]
#[derive(Clone, Copy)]
struct TensorEntry {
    value: Address,
    m: Address,
    v: Address,
    grad: Address,
    copy: Address,
    length: u64,
    group: u32,
    copy_kind: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Group {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    step: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Control {
    grad_scale: f32,
    max_norm: f32,
    loss_scale: f32,
    scaling: u32,
    growth_interval: u32,
    good_steps: u32,
    norm: f32,
    factor: f32,
    skipped: u32,
    skipped_total: u32,
    unused: [u32; 2],
}

/// Several chunks with a ragged end, one element, an odd small one.
const LENGTHS: [usize; 3] = [2 * CHUNK + 4465, 1, 37];
const GROUPS: [usize; 3] = [0, 1, 0];

fn options() -> [AdamWOptions; 2] {
    let decaying = AdamWOptions {
        lr: 0.01,
        weight_decay: 0.1,
        ..Default::default()
    };
    [
        decaying,
        AdamWOptions {
            weight_decay: 0.0,
            ..decaying
        },
    ]
}

/// The parameters on the device.
struct Model {
    values: Vec<Buffer<f32>>,
    m: Vec<Buffer<f32>>,
    v: Vec<Buffer<f32>>,
    grads: Vec<Buffer<f32>>,
    bf16: Buffer<bf16>,
    f16: Buffer<f16>,
    tensors: Buffer<TensorEntry>,
    chunks: Buffer<[u32; 2]>,
    groups: Buffer<Group>,
    factors: Buffer<[f32; 8]>,
    partials: Buffer<f64>,
    count: usize,
}

impl Model {
    fn new() -> Self {
        let buffers = |f: &dyn Fn(usize) -> Vec<f32>| -> Vec<_> {
            (0..3).map(|i| Buffer::new(&f(i))).collect()
        };
        let values = buffers(&|i| noise(LENGTHS[i], i as u64));
        let [m, v] = [(); 2].map(|()| buffers(&|i| vec![0.0; LENGTHS[i]]));
        let grads = buffers(&|i| vec![0.0; LENGTHS[i]]);
        let bf16 = unwritten::<bf16>(LENGTHS[0]);
        let f16 = unwritten::<f16>(LENGTHS[2]);
        let entries: Vec<_> = (0..3)
            .map(|i| TensorEntry {
                value: values[i].at(),
                m: m[i].at(),
                v: v[i].at(),
                grad: grads[i].at(),
                copy: [bf16.at(), NULL, f16.at()][i],
                length: LENGTHS[i] as u64,
                group: GROUPS[i] as u32,
                copy_kind: [1, 0, 2][i],
            })
            .collect();
        let chunks: Vec<[u32; 2]> = (0..3)
            .flat_map(|i| {
                (0..LENGTHS[i].div_ceil(CHUNK)).map(move |chunk| [i as u32, chunk as u32])
            })
            .collect();
        let groups = options().map(|options| Group {
            lr: options.lr,
            beta1: options.betas.0,
            beta2: options.betas.1,
            eps: options.eps,
            weight_decay: options.weight_decay,
            step: 0,
        });
        Self {
            values,
            m,
            v,
            grads,
            bf16,
            f16,
            tensors: Buffer::new(&entries),
            count: chunks.len(),
            partials: Buffer::new(&vec![f64::NAN; chunks.len()]),
            chunks: Buffer::new(&chunks),
            groups: Buffer::new(&groups),
            factors: Buffer::new(&[[f32::NAN; 8]; 2]),
        }
    }

    /// One step with these gradients; what the control says afterwards.
    fn step(&self, grads: &[Vec<f32>], control: Control, norm: bool) -> Control {
        for (buffer, grad) in self.grads.iter().zip(grads) {
            // SAFETY: the buffer has the gradient's length.
            unsafe { std::ptr::copy_nonoverlapping(grad.as_ptr(), buffer.at().cast(), grad.len()) };
        }
        let control = Buffer::new(&[control]);
        let grid = [self.count, 1, 1];
        let count = if norm { self.count as u32 } else { 0 };
        if norm {
            let arguments = (
                self.partials.at(),
                self.tensors.at(),
                self.chunks.at(),
                count,
            );
            launch("grad_norm_chunks", grid, [256, 1], 0, arguments);
        }
        let arguments = (
            control.at(),
            self.groups.at(),
            self.factors.at(),
            2u32,
            if norm { self.partials.at() } else { NULL },
            count,
        );
        launch("adamw_prepare", [1, 1, 1], [256, 1], 0, arguments);
        let arguments = (
            control.at(),
            self.tensors.at(),
            self.chunks.at(),
            self.factors.at(),
        );
        launch("adamw_update", grid, [256, 1], 0, arguments);
        control.values()[0]
    }

    fn outcome(&self) -> Vec<Vec<f32>> {
        let all = self.values.iter().chain(&self.m).chain(&self.v);
        all.map(Buffer::values).collect()
    }
}

/// The same on the CPU.
struct Expected {
    params: Vec<Param>,
    states: Vec<AdamWState>,
}

impl Expected {
    fn new() -> Self {
        let params: Vec<_> = (0..3)
            .map(|i| param(&noise(LENGTHS[i], i as u64), &[LENGTHS[i]]))
            .collect();
        let states = params.iter().map(|p| AdamWState::new(p).unwrap()).collect();
        Self { params, states }
    }

    /// One step; the norm of the gradients.
    fn step(&mut self, grads: &[Vec<f32>], grad_scale: f64, max_norm: f64) -> f64 {
        for (param, grad) in self.params.iter().zip(grads) {
            param.zero_grad();
            param.add_grad(&tensor(grad, &[grad.len()])).unwrap();
        }
        let norm = ops::grad_norm(&self.params).unwrap() * grad_scale;
        let clip = if max_norm > 0.0 {
            (max_norm / (norm + 1e-6)).min(1.0)
        } else {
            1.0
        };
        for (i, group) in GROUPS.into_iter().enumerate() {
            let options = options()[group];
            let (params, states) = (&self.params[i..=i], &mut self.states[i..=i]);
            ops::adamw_step(params, states, &options, grad_scale * clip).unwrap();
        }
        norm
    }

    fn outcome(&self) -> Vec<Vec<f32>> {
        let mut all: Vec<_> = self.params.iter().map(|p| values(&p.tensor())).collect();
        all.extend(self.states.iter().map(|state| values(&state.m)));
        all.extend(self.states.iter().map(|state| values(&state.v)));
        all
    }
}

fn grads(step: u64) -> Vec<Vec<f32>> {
    (0..3)
        .map(|i| noise(LENGTHS[i], 10 + 3 * step + i as u64))
        .collect()
}

const PLAIN: Control = Control {
    grad_scale: 0.5,
    max_norm: 0.0,
    loss_scale: 1.0,
    scaling: 0,
    growth_interval: 2000,
    good_steps: 0,
    norm: f32::NAN,
    factor: f32::NAN,
    skipped: 7,
    skipped_total: 0,
    unused: [0; 2],
};

#[test]
fn three_steps_agree_with_the_cpu_with_and_without_clipping() {
    for (max_norm, measured) in [(0.0, false), (0.0, true), (1.0, true), (1e6, true)] {
        let mut expected = Expected::new();
        let norms: Vec<f64> = (0..3)
            .map(|step| expected.step(&grads(step), 0.5, f64::from(max_norm)))
            .collect();
        let want = expected.outcome();
        for got in in_all_orders(|| {
            let model = Model::new();
            for (step, norm) in norms.iter().enumerate() {
                let control = Control { max_norm, ..PLAIN };
                let after = model.step(&grads(step as u64), control, measured);
                assert_eq!(after.skipped, 0);
                assert_eq!((after.loss_scale, after.good_steps), (1.0, 0));
                if measured {
                    assert!((f64::from(after.norm) / norm - 1.0).abs() < 1e-6);
                }
            }
            assert!(model.groups.values().iter().all(|group| group.step == 3));
            let first = &model.values[0].values();
            assert_eq!(widened(&model.bf16), rounded::<bf16>(first));
            assert_eq!(
                widened(&model.f16),
                rounded::<f16>(&model.values[2].values())
            );
            model.outcome()
        }) {
            for (got, want) in got.iter().zip(&want) {
                // Clipping multiplies by a number that may be rounded otherwise.
                close::<f32>(
                    "state",
                    got,
                    want,
                    if max_norm == 1.0 { 1e-6 } else { 1e-7 },
                );
            }
        }
    }
}

#[test]
fn with_loss_scaling_an_overflowing_step_changes_only_the_scale() {
    let scaled = |step: u64, scale: f32| -> Vec<Vec<f32>> {
        let scale = |grad: Vec<f32>| grad.iter().map(|g| g * scale).collect();
        grads(step).into_iter().map(scale).collect()
    };
    let mut expected = Expected::new();
    expected.step(&grads(0), 0.5, 1.0);
    expected.step(&grads(2), 0.5, 1.0);
    for got in in_all_orders(|| {
        let model = Model::new();
        let control = Control {
            max_norm: 1.0,
            loss_scale: 1024.0,
            scaling: 1,
            growth_interval: 2,
            ..PLAIN
        };
        let first = model.step(&scaled(0, 1024.0), control, true);
        assert_eq!(
            (first.skipped, first.good_steps, first.loss_scale),
            (0, 1, 1024.0)
        );
        let before = model.outcome();
        let mut broken = scaled(1, 1024.0);
        broken[0][CHUNK + 5] = f32::INFINITY;
        let second = model.step(&broken, first, true);
        assert_eq!((second.skipped, second.skipped_total), (1, 1));
        assert_eq!((second.good_steps, second.loss_scale), (0, 512.0));
        assert!(model.groups.values().iter().all(|group| group.step == 1));
        assert_eq!(model.outcome(), before);
        let third = model.step(&scaled(2, 512.0), second, true);
        assert_eq!(
            (third.skipped, third.good_steps, third.loss_scale),
            (0, 1, 512.0)
        );
        let outcome = model.outcome();
        let fourth = model.step(&scaled(3, 512.0), third, true);
        assert_eq!((fourth.good_steps, fourth.loss_scale), (0, 1024.0), "grown");
        outcome
    }) {
        for (got, want) in got.iter().zip(expected.outcome()) {
            close::<f32>("state", got, &want, 1e-6);
        }
    }
}

#[test]
fn without_loss_scaling_nan_is_not_hidden() {
    let model = Model::new();
    let mut broken = grads(0);
    broken[1][0] = f32::NAN;
    let after = model.step(
        &broken,
        Control {
            max_norm: 1.0,
            ..PLAIN
        },
        true,
    );
    assert!(after.skipped == 0 && after.norm.is_nan());
    assert!(model.values[0].values().iter().all(|x| x.is_nan()));
}
