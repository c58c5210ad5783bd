//! The matrix unit of recent Xeons (AMX), which only multiplies bf16, but sixteen times as fast as vector units
//! multiply f32; [`gemm::packed`](crate::ops::gemm::packed) explains how f32 products are made of bf16 ones.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

/// Returns whether this machine has the unit and the system lets this process use it. That it has AVX-512 is for the
/// caller to know.
pub(in crate::ops) fn is_available() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    // Leaves that a processor does not know read as those of its highest.
    let known = __cpuid(0).eax >= 7;
    let features = if known { __cpuid_count(7, 0).edx } else { 0 };
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && permitted()
}

/// Asks Linux for the large register state, for all threads of the process.
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call only changes what registers the process may use.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

/// Sets all eight tile registers to 16 rows of 64 bytes.
///
/// # Safety
/// The level must be [`crate::ops::simd::Level::Matrix`].
pub(in crate::ops) unsafe fn configure() {
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }
    let used = |value: u8| std::array::from_fn(|i| if i < 8 { value } else { 0 });
    let config = Config {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: used(64).map(u16::from),
        rows: used(16),
    };
    // SAFETY: the caller's promise; the instruction reads 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
}

/// Releases the tile registers.
///
/// # Safety
/// The level must be [`crate::ops::simd::Level::Matrix`].
pub(in crate::ops) unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// The four products of two tiles of `a` and two of `b`.
macro_rules! four_products {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6
         tdpbf16ps tmm1, tmm4, tmm7
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm3, tmm5, tmm7"
    };
}

/// A function for 32 x 32 elements of the result, which does `$step` for every step of the inner dimension.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $($step:expr,)*) => {
        $(#[$doc])*
        ///
        /// 32 x 32 elements of the result, rows `stride` bytes apart.
        ///
        /// # Safety
        /// As for [`packed::multiply`](crate::ops::gemm::packed), with all of the block existing.
        pub(in crate::ops) unsafe fn $name(
            [a, b, ahead]: [*const u8; 3],
            steps: usize,
            c: *mut f32,
            stride: usize,
            add: bool,
        ) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    "test {add:e}, {add:e}",
                    "jz 2f",
                    "tileloadd tmm0, [{c} + {stride}*1]",
                    "tileloadd tmm1, [{c} + {stride}*1 + 64]",
                    "tileloadd tmm2, [{below} + {stride}*1]",
                    "tileloadd tmm3, [{below} + {stride}*1 + 64]",
                    "jmp 3f",
                    "2:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "3:",
                    $($step,)*
                    "dec {steps}",
                    "jnz 3b",
                    "tilestored [{c} + {stride}*1], tmm0",
                    "tilestored [{c} + {stride}*1 + 64], tmm1",
                    "tilestored [{below} + {stride}*1], tmm2",
                    "tilestored [{below} + {stride}*1 + 64], tmm3",
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    ahead = inout(reg) ahead => _,
                    steps = inout(reg) steps => _,
                    c = in(reg) c,
                    below = in(reg) c.byte_add(16 * stride),
                    stride = in(reg) stride,
                    row = in(reg) 64usize,
                    add = in(reg) u32::from(add),
                    out("tmm0") _,
                    out("tmm1") _,
                    out("tmm2") _,
                    out("tmm3") _,
                    out("tmm4") _,
                    out("tmm5") _,
                    out("tmm6") _,
                    out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

kernel! {
    /// At f32's precision. The parts are visited in an order in which one operand at a time is exchanged.
    exact_kernel,
    // a2 b2
    "tileloadd tmm4, [{a} + {row}*1 + 2048]",
    "tileloadd tmm5, [{a} + {row}*1 + 3072]",
    "tileloadd tmm6, [{b} + {row}*1 + 2048]",
    "tileloadd tmm7, [{b} + {row}*1 + 3072]",
    four_products!(),
    "prefetcht1 [{ahead} + 0]",
    "prefetcht1 [{ahead} + 64]",
    "prefetcht1 [{ahead} + 128]",
    "prefetcht1 [{ahead} + 192]",
    // a1 b2
    "tileloadd tmm4, [{a} + {row}*1]",
    "tileloadd tmm5, [{a} + {row}*1 + 1024]",
    four_products!(),
    "prefetcht1 [{ahead} + 256]",
    "prefetcht1 [{ahead} + 320]",
    "prefetcht1 [{ahead} + 384]",
    "prefetcht1 [{ahead} + 448]",
    // a1 b3
    "tileloadd tmm6, [{b} + {row}*1 + 4096]",
    "tileloadd tmm7, [{b} + {row}*1 + 5120]",
    four_products!(),
    "prefetcht1 [{ahead} + 512]",
    "prefetcht1 [{ahead} + 576]",
    "prefetcht1 [{ahead} + 640]",
    "prefetcht1 [{ahead} + 704]",
    // a1 b1
    "tileloadd tmm6, [{b} + {row}*1]",
    "tileloadd tmm7, [{b} + {row}*1 + 1024]",
    four_products!(),
    "prefetcht1 [{ahead} + 768]",
    "prefetcht1 [{ahead} + 832]",
    "prefetcht1 [{ahead} + 896]",
    "prefetcht1 [{ahead} + 960]",
    // a2 b1
    "tileloadd tmm4, [{a} + {row}*1 + 2048]",
    "tileloadd tmm5, [{a} + {row}*1 + 3072]",
    four_products!(),
    // a3 b1
    "tileloadd tmm4, [{a} + {row}*1 + 4096]",
    "tileloadd tmm5, [{a} + {row}*1 + 5120]",
    four_products!(),
    "add {ahead}, 1024",
    "add {a}, 6144",
    "add {b}, 6144",
}

kernel! {
    /// At bf16's precision.
    bf16_kernel,
    "tileloadd tmm4, [{a} + {row}*1]",
    "tileloadd tmm5, [{a} + {row}*1 + 1024]",
    "tileloadd tmm6, [{b} + {row}*1]",
    "tileloadd tmm7, [{b} + {row}*1 + 1024]",
    four_products!(),
    "prefetcht1 [{ahead} + 0]",
    "prefetcht1 [{ahead} + 64]",
    "prefetcht1 [{ahead} + 128]",
    "prefetcht1 [{ahead} + 192]",
    "add {ahead}, 256",
    "add {a}, 2048",
    "add {b}, 2048",
}
