// The table of this instruction set's kernels.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/vec.h"

#define TL_JOIN2(a, b) a##b
#define TL_JOIN(a, b) TL_JOIN2(a, b)
#define TL_TEXT2(a) #a
#define TL_TEXT(a) TL_TEXT2(a)

namespace tinyllama::cpu {

namespace isa = TINYLLAMA_ISA;

const TrainingKernels TL_JOIN(training_, TINYLLAMA_ISA) = {
    isa::product,
    isa::transpose,
    isa::tile_of_columns,
    isa::tile_of_weights,
    isa::attention_backward,
    isa::rms_norm_backward,
    isa::norm_weight_backward,
    isa::swiglu_backward,
    isa::exponentials,
    isa::scale,
    isa::add,
    isa::sum_of_squares,
    isa::adamw,
};

const Kernels TL_JOIN(kernels_, TINYLLAMA_ISA) = {
    TL_TEXT(TINYLLAMA_ISA),
    kColumns,
    isa::pack_columns,
    isa::column_bytes,
    isa::tile,
    isa::block,
    isa::attention,
    isa::rms_norm,
    isa::swiglu,
    isa::rope,
    isa::store_kv,
    isa::load_kv,
    isa::peak_fp32,
    isa::peak_bf16,
    isa::peak_int8,
    nullptr,
    isa::read_memory,
    &TL_JOIN(training_, TINYLLAMA_ISA),
};

}  // namespace tinyllama::cpu
