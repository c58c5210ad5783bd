use super::*;

const PIECE: usize = 64;

/// What the host prepares for the backward pass: positions by id in pieces, and where each piece goes.
#[derive(Default)]
struct Plan {
    positions: Vec<u32>,
    piece_begin: Vec<u32>,
    piece_target: Vec<u32>,
    run_begin: Vec<u32>,
    run_ids: Vec<u32>,
}

impl Plan {
    fn new(ids: &[u32], padding: Option<u32>) -> Self {
        let mut order: Vec<(u32, u32)> = ids.iter().copied().zip(0..).collect();
        order.retain(|(id, _)| Some(*id) != padding);
        order.sort_unstable();
        let mut plan = Self {
            run_begin: vec![0],
            ..Self::default()
        };
        let mut partials = 0;
        for run in order.chunk_by(|a, b| a.0 == b.0) {
            let several = run.len() > PIECE;
            for piece in run.chunks(PIECE) {
                plan.piece_begin.push(plan.positions.len() as u32);
                plan.positions
                    .extend(piece.iter().map(|(_, position)| position));
                plan.piece_target.push(if several {
                    0x8000_0000 | partials
                } else {
                    run[0].0
                });
                partials += u32::from(several);
            }
            if several {
                plan.run_ids.push(run[0].0);
                plan.run_begin.push(partials);
            }
        }
        plan.piece_begin.push(plan.positions.len() as u32);
        plan
    }

    fn run<T: Element>(&self, grad: &Buffer<f32>, dy: &Buffer<T>, width: usize, add: u32) {
        let pieces = self.piece_target.len();
        if pieces == 0 {
            return;
        }
        let parts = *self.run_begin.last().unwrap() as usize;
        let partials = unwritten::<f32>(parts * width);
        let [positions, begin, target] =
            [&self.positions, &self.piece_begin, &self.piece_target].map(|x| Buffer::new(x));
        launch(
            &format!("embedding_backward_{}", T::NAME),
            [pieces, width.div_ceil(512), 1],
            [128, 1],
            0,
            (
                grad.at(),
                if parts == 0 { NULL } else { partials.at() },
                dy.at(),
                positions.at(),
                begin.at(),
                target.at(),
                pieces as u32,
                width as u32,
                add,
            ),
        );
        let runs = self.run_ids.len();
        if runs == 0 {
            return;
        }
        let [begin, ids] = [&self.run_begin, &self.run_ids].map(|x| Buffer::new(x));
        launch(
            "embedding_backward_combine",
            [runs, width.div_ceil(32), 1],
            [32, 8],
            0,
            (
                grad.at(),
                partials.at(),
                begin.at(),
                ids.at(),
                runs as u32,
                width as u32,
                add,
            ),
        );
    }
}

fn check<T: Element>() {
    for (batch, seq, width) in [(1, 1, 1), (2, 5, 30), (3, 70, 768), (1, 7, 1000)] {
        let rows = batch * seq;
        let shape = [batch, seq];
        let vocab = 11;
        // Word 1 is padding; positions are given once; there is one type, named by every row.
        let words: Vec<u32> = (0..rows).map(|i| (i * i % vocab) as u32).collect();
        let positions: Vec<u32> = (0..seq as u32).collect();
        let types = vec![0u32; rows];
        let tables = [
            noise(vocab * width, 1),
            noise(seq * width, 2),
            noise(width, 3),
        ];
        let params = [
            param(&tables[0], &[vocab, width]),
            param(&tables[1], &[seq, width]),
            param(&tables[2], &[1, width]),
        ];
        let ids =
            |x: &[u32], shape: &[usize]| Tensor::from_vec(x.to_vec(), shape, &Device::Cpu).unwrap();
        let lookups = [
            ids(&words, &shape),
            ids(&positions, &[1, seq]),
            ids(&types, &shape),
        ];
        let padding = [Some(1), None, None];
        let list: Vec<_> = (0..3)
            .map(|i| (&lookups[i], &params[i], padding[i]))
            .collect();
        let y = ops::embedding_sum(&list).unwrap();
        let dy = rounded::<T>(&noise(rows * width, 4));
        gradients(&y, &dy, &[]);
        let all_positions = positions.repeat(batch);

        for got in in_all_orders(|| {
            let [a, b, c] = [0, 1, 2].map(|i| Buffer::new(&tables[i]));
            let [p, q, r] = [&words, &positions, &types].map(|x| Buffer::new(x));
            let [all, one] = [(); 2].map(|()| unwritten::<T>(rows * width));
            let name = format!("embedding_forward_{}", T::NAME);
            let (n, seq, width_arg) = (rows as u32, seq as u32, width as u32);
            let grid = [rows.div_ceil(8), 1, 1];
            let arguments = (
                all.at(),
                a.at(),
                p.at(),
                n,
                b.at(),
                q.at(),
                seq,
                c.at(),
                r.at(),
                n,
                n,
                width_arg,
            );
            launch(&name, grid, [32, 8], 0, arguments);
            let arguments = (
                one.at(),
                b.at(),
                q.at(),
                seq,
                NULL,
                NULL,
                1u32,
                NULL,
                NULL,
                1u32,
                n,
                width_arg,
            );
            launch(&name, grid, [32, 8], 0, arguments);
            let dy = activations::<T>(&dy);
            // The words' gradient is added to zeros, as one that is new; the others' overwrite.
            let grads = [
                Buffer::new(&vec![0f32; vocab * width]),
                unwritten::<f32>(seq as usize * width),
                unwritten::<f32>(width),
            ];
            Plan::new(&words, Some(1)).run(&grads[0], &dy, width, 1);
            Plan::new(&all_positions, None).run(&grads[1], &dy, width, 0);
            Plan::new(&types, None).run(&grads[2], &dy, width, 0);
            let [x, y, z] = &grads;
            let first = [x.values(), y.values(), z.values()];
            // Once more on top.
            Plan::new(&types, None).run(&grads[2], &dy, width, 1);
            let [x, y, z] = first;
            vec![widened(&all), widened(&one), x, y, z, grads[2].values()]
        }) {
            close::<T>("sum", &got[0], &values(&y), 1e-6);
            close::<T>("one", &got[1], &tables[1].repeat(batch), 0.0);
            close::<f32>("words", &got[2], &grad_of(&params[0]), 1e-5);
            close::<f32>("positions", &got[3], &grad_of(&params[1]), 1e-5);
            close::<f32>("types", &got[4], &grad_of(&params[2]), 1e-5);
            let twice: Vec<f32> = got[4].iter().map(|x| 2.0 * x).collect();
            assert_eq!(got[5], twice);
        }
    }
}

#[test]
fn sums_of_lookups_and_their_gradients_agree_with_the_cpu() {
    check::<f32>();
    check::<bf16>();
    check::<f16>();
}

#[test]
fn rows_are_selected_and_scattered_back() {
    fn check<T: Element>() {
        for width in [1, 30, 768] {
            let count = 20;
            let x = rounded::<T>(&noise(count * width, 1));
            let rows = [7u32, 0, 19, 3, 4, 5, 6, 18, 1];
            let dy = rounded::<T>(&noise(rows.len() * width, 2));
            let input = var(&x, &[count, width]);
            let ids = Tensor::new(&rows, &Device::Cpu).unwrap();
            let y = ops::select_rows(&input, &ids).unwrap();
            let dx = gradients(&y, &dy, &[&input]).remove(0);
            for got in in_all_orders(|| {
                let [x, dy] = [&x, &dy].map(|x| activations::<T>(x));
                let (out, dx) = (
                    unwritten::<T>(rows.len() * width),
                    activations::<T>(&vec![0.0; count * width]),
                );
                let ids = Buffer::new(&rows);
                let (n, width) = (rows.len() as u32, width as u32);
                let arguments = (out.at(), x.at(), ids.at(), n, width);
                launch(
                    &format!("select_rows_{}", T::NAME),
                    [2, 1, 1],
                    [32, 8],
                    0,
                    arguments,
                );
                let arguments = (dx.at(), dy.at(), ids.at(), n, width);
                launch(
                    &format!("scatter_rows_{}", T::NAME),
                    [2, 1, 1],
                    [32, 8],
                    0,
                    arguments,
                );
                vec![widened(&out), widened(&dx)]
            }) {
                assert_eq!(got[0], values(&y));
                assert_eq!(got[1], dx);
            }
        }
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
}
