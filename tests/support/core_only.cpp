// An empty program that tests/CMakeLists.txt links with every object of the core layers;
// artifacts_test looks at what it needs.
int main() {
  return 0;
}
