//! Which instruction set the kernels run on: found once at run time, never at compile time.

use std::sync::OnceLock;

/// An instruction set that every kernel has a version for.
///
/// All give the same bits: a kernel's lanes, its order of additions and its fused multiplications are fixed by
/// [`crate::vector::Vector`], and the instruction set only decides how many machine operations that takes. The
/// exceptions are [`crate::Activations::narrow`] and [`crate::attend`] over bf16 keys, which only the last one rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust: the reference that the others are tested against.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with VNNI: dot products of bytes.
    Avx512Vnni,
    /// The same with BF16: dot products of bfloat16.
    Avx512Bf16,
}

impl Isa {
    /// The instruction sets this machine can run, slowest first.
    pub fn available() -> Vec<Self> {
        [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16]
            .into_iter()
            .filter(|isa| isa.is_supported())
            .collect()
    }

    /// # Panics
    /// When this machine cannot run it.
    #[inline]
    pub(crate) fn check(self) {
        assert!(self.is_supported(), "{self:?} is not available here");
    }

    /// The one the kernels use: the widest that the machine has, or what `BITDELTA_ISA` (`scalar`, `avx2`, `avx512`, `avx512vnni`, `avx512bf16`)
    /// asks for where the machine has it. Settled at the first call.
    pub fn selected() -> Self {
        static SELECTED: OnceLock<Isa> = OnceLock::new();
        *SELECTED.get_or_init(|| {
            let wanted = std::env::var("BITDELTA_ISA").unwrap_or_default();
            let available = Self::available();
            let widest = available.iter().copied().max().unwrap_or(Self::Scalar);
            available.into_iter().find(|isa| isa.name() == wanted).unwrap_or(widest)
        })
    }

    /// The name used in `BITDELTA_ISA` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_supported(self) -> bool {
        let avx2 =
            || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        match self {
            Self::Scalar => true,
            Self::Avx2 => avx2(),
            Self::Avx512 => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Self::Avx512Vnni => Self::Avx512.is_supported() && is_x86_feature_detected!("avx512vnni"),
            Self::Avx512Bf16 => Self::Avx512Vnni.is_supported() && is_x86_feature_detected!("avx512bf16"),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_supported(self) -> bool {
        self == Self::Scalar
    }
}

/// Runs `f` where the compiler may use the widest vectors of this machine ([`Isa::selected`]): for plain loops over floats,
/// which it then vectorises. What `f` calls must be inlined into it (`#[inline(always)]`), or stays as narrow as it was. The
/// result is the same on every instruction set, since additions are not reordered, nor fused with multiplications.
#[inline]
pub fn widely<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn avx512<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    match Isa::selected() {
        // SAFETY: the selected instruction set is one of this machine's, and `f` needs none.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(f) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe { avx512(f) },
        _ => f(),
    }
}

/// Runs `$generic::<V>(args)`, or `$generic::<V, number>(args)`, with the type among these that goes with the given instruction
/// set, inside a function that has that instruction set's target features, so that everything inlines into it.
macro_rules! dispatch_to {
    ($isa:expr, [$scalar:ty, $avx2:ty, $avx512:ty $(, $number:literal)?],
     $generic:ident ( $($arg:ident : $ty:ty),* $(,)? )) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        // Clippy counts a kernel's operands.
        #[allow(clippy::too_many_arguments)]
        unsafe fn avx2($($arg: $ty),*) {
            // SAFETY: the caller upholds the generic kernel's contract, and this function's own target features are
            // what the type for AVX2 needs.
            unsafe { $generic::<$avx2 $(, $number)?>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        unsafe fn avx512($($arg: $ty),*) {
            // SAFETY: as above, for AVX-512.
            unsafe { $generic::<$avx512 $(, $number)?>($($arg),*) }
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` other than `Scalar` comes from `Isa::available`, which asked the CPU; the operands are
            // the enclosing function's, whose contract covers the kernel's.
            crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            crate::isa::Isa::Avx512 | crate::isa::Isa::Avx512Vnni | crate::isa::Isa::Avx512Bf16 => unsafe {
                avx512($($arg),*)
            },
            // SAFETY: the scalar type needs no CPU feature.
            _ => unsafe { $generic::<$scalar $(, $number)?>($($arg),*) },
        }
    }};
}
pub(crate) use dispatch_to;

/// [`dispatch_to`] for kernels over [`crate::vector::Vector`].
macro_rules! dispatch {
    ($isa:expr, $($kernel:tt)*) => {
        crate::isa::dispatch_to!(
            $isa,
            [crate::vector::scalar::Scalar, crate::vector::avx2::Avx2, crate::vector::avx512::Avx512],
            $($kernel)*
        )
    };
}
pub(crate) use dispatch;

/// [`dispatch`] for kernels over [`crate::vector::int8::Int8Vector`].
macro_rules! dispatch_int8 {
    ($isa:expr, $generic:ident ( $($arg:ident : $ty:ty),* )) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2($($arg: $ty),*) {
            // SAFETY: the caller upholds the generic kernel's contract, and this function's own target features are
            // what the vector needs.
            unsafe { $generic::<crate::vector::int8::Avx2, _>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn avx512($($arg: $ty),*) {
            // SAFETY: as above.
            unsafe { $generic::<crate::vector::int8::Avx512, _>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn avx512vnni($($arg: $ty),*) {
            // SAFETY: as above.
            unsafe { $generic::<crate::vector::int8::Avx512Vnni, _>($($arg),*) }
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` other than `Scalar` comes from `Isa::available`, which asked the CPU; the operands are
            // the enclosing function's, whose contract covers the kernel's.
            crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            crate::isa::Isa::Avx512 => unsafe { avx512($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            crate::isa::Isa::Avx512Vnni | crate::isa::Isa::Avx512Bf16 => unsafe { avx512vnni($($arg),*) },
            // SAFETY: the scalar vector needs no CPU feature.
            _ => unsafe { $generic::<crate::vector::int8::Scalar, _>($($arg),*) },
        }
    }};
}
pub(crate) use dispatch_int8;

/// [`dispatch_to`] for kernels over [`crate::vector::lookup::Lookup`], with a number of theirs.
macro_rules! dispatch_lookup {
    ($isa:expr, $generic:ident $(::<$number:literal>)? ( $($args:tt)* )) => {
        crate::isa::dispatch_to!(
            $isa,
            [crate::vector::lookup::Scalar, crate::vector::lookup::Avx2, crate::vector::lookup::Avx512 $(, $number)?],
            $generic($($args)*)
        )
    };
}
pub(crate) use dispatch_lookup;
