# What every target is compiled with, and the helper that declares one layer of the tree.
find_package(Threads REQUIRED)

add_library(tinyllama_options INTERFACE)
target_compile_options(tinyllama_options INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor
                                                   -Wimplicit-fallthrough -Wundef
                                                   # GCC's -Wextra has it, and warns of {.a = 1} too
                                                   -Wno-missing-field-initializers)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(tinyllama_options INTERFACE -Wno-restrict)  # warns of std::string's own + (GCC bug 105651)
endif()
if(TINYLLAMA_WERROR)
  target_compile_options(tinyllama_options INTERFACE -Werror)
endif()
# The bits of a result must not depend on what the compiler chose to contract; kernels ask for fma by name.
target_compile_options(tinyllama_options INTERFACE -ffp-contract=off)
if(TINYLLAMA_SANITIZE)
  target_compile_options(tinyllama_options INTERFACE -fsanitize=${TINYLLAMA_SANITIZE} -fno-omit-frame-pointer
                                                     -fno-sanitize-recover=all)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # With instrumentation in the way, GCC 12's flow-based warnings see impossible sizes.
    target_compile_options(tinyllama_options INTERFACE -Wno-stringop-overflow -Wno-stringop-overread
                                                       -Wno-array-bounds -Wno-maybe-uninitialized)
  endif()
  target_link_options(tinyllama_options INTERFACE -fsanitize=${TINYLLAMA_SANITIZE})
endif()

find_program(TINYLLAMA_CCACHE ccache)
if(TINYLLAMA_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${TINYLLAMA_CCACHE})
endif()

# tinyllama_layer(<name> SOURCES ... DEPENDS <layers>): one static library per folder of src/.
# DEPENDS may only name layers below it; tests/layering_test holds the includes to the same rule.
function(tinyllama_layer name)
  cmake_parse_arguments(LAYER "" "" "SOURCES;DEPENDS;PRIVATE_LIBS" ${ARGN})
  add_library(tinyllama_${name} STATIC ${LAYER_SOURCES})
  target_include_directories(tinyllama_${name} PUBLIC ${PROJECT_SOURCE_DIR}/src)
  target_compile_definitions(tinyllama_${name} PRIVATE FMT_HEADER_ONLY=1)
  target_link_libraries(tinyllama_${name} PUBLIC tinyllama_options Threads::Threads)
  foreach(layer ${LAYER_DEPENDS})
    target_link_libraries(tinyllama_${name} PUBLIC tinyllama_${layer})
  endforeach()
  target_link_libraries(tinyllama_${name} PRIVATE ${LAYER_PRIVATE_LIBS})
endfunction()
