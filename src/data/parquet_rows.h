// The rows of a Parquet file as corpus.h wants them: the text column, with the filters applied.
#pragma once

#include <memory>

#include "data/corpus.h"

namespace tinyllama {

std::unique_ptr<RowSource> open_parquet_rows(const CorpusFile& file, const CorpusOptions& options);

}  // namespace tinyllama
