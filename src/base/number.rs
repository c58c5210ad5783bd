//! Numeric arguments of any type, so that callers need no conversions.

/// A number of any type.
pub trait Number {
    /// Returns it in double precision.
    fn number(self) -> f64;
}

/// A whole number of any type, to count or to seed with.
pub trait Count {
    /// Returns it in 64 bits; a negative one wraps around.
    fn count(self) -> u64;
}

macro_rules! numbers {
    ($($type:ty)*) => {
        $(impl Number for $type {
            fn number(self) -> f64 {
                self as f64
            }
        })*
    };
}

macro_rules! counts {
    ($($type:ty)*) => {
        $(impl Count for $type {
            fn count(self) -> u64 {
                self as u64
            }
        })*
    };
}

numbers!(f64 f32 usize u64 u32 u16 u8 i64 i32);
counts!(usize u64 u32 u16 u8 i64 i32);
