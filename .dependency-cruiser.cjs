/**
 * Who may import whom: one rule per folder, then what the sandbox and the packages ask.
 * `tests/planted-imports.ts` plants a bad import against every rule; the check fails unless it is caught.
 */

/** Folder → the folders of ours it may import besides itself. `cli`, `worker`, `tests` and `bench` may import all. */
const MAY_IMPORT = {
  schemas: [],
  plan: ['schemas'],
  workflows: ['schemas', 'activities'],
  activities: ['schemas', 'environments'],
  environments: ['schemas'],
  services: ['schemas'],
};
const OURS = '^(schemas|plan|workflows|activities|environments|services|worker|cli|tests|bench)/';

const rows = Object.entries(MAY_IMPORT).map(([folder, allowed]) => ({
  name: `${folder}-imports`,
  comment: `${folder}/ may import ${[...allowed, 'itself'].join(', ')} and nothing else of ours`,
  severity: 'error',
  from: { path: `^${folder}/` },
  to: { path: OURS, pathNot: `^(${[folder, ...allowed].join('|')})/` },
}));

module.exports = {
  forbidden: [
    ...rows,
    {
      name: 'workflows-see-types-only',
      comment: 'across the sandbox line go types, never values',
      severity: 'error',
      from: { path: '^workflows/' },
      to: { path: '^(schemas|activities)/', dependencyTypesNot: ['type-only'] },
    },
    {
      name: 'workflows-see-interfaces-only',
      comment: 'all that workflows see of activities stands in activities/index.ts',
      severity: 'error',
      from: { path: '^workflows/' },
      to: { path: '^activities/', pathNot: '^activities/index[.]ts$' },
    },
    {
      name: 'workflows-stay-pure',
      comment: 'the sandbox has no Node: validation and hashing happen in plan/ or at the edge of an activity',
      severity: 'error',
      from: { path: '^workflows/' },
      to: { dependencyTypes: ['core'] },
    },
    {
      name: 'workflows-packages',
      comment: 'of packages, workflow code uses Temporal alone',
      severity: 'error',
      from: { path: '^workflows/' },
      to: { path: 'node_modules/', pathNot: 'node_modules/@temporalio/(workflow|common|activity)/' },
    },
    {
      name: 'schemas-packages',
      comment: 'definitions need TypeBox and nothing else (node:crypto for the canonical hash)',
      severity: 'error',
      from: { path: '^schemas/' },
      to: { path: 'node_modules/', pathNot: 'node_modules/typebox/' },
    },
    {
      name: 'report-page-stays-in-the-browser',
      comment: 'the page of a report is given a document; it can neither read nor start anything',
      severity: 'error',
      from: { path: '^cli/report/page/' },
      to: {
        path: ['node_modules/', OURS],
        pathNot: ['node_modules/@observablehq/plot/', '^cli/report/(page/|document[.]ts$)'],
      },
    },
    {
      name: 'environments-know-no-temporal',
      comment: 'what an agent acts in works without any workflow engine',
      severity: 'error',
      from: { path: '^environments/' },
      to: { path: 'node_modules/@temporalio/' },
    },
    {
      name: 'nothing-of-ours-imports-tests',
      comment: 'tests and benchmarks are read by nobody',
      severity: 'error',
      from: { pathNot: '^(tests|bench)/' },
      to: { path: '^(tests|bench)/' },
    },
    {
      name: 'no-cycles',
      comment: 'a cycle of values has no order to read it in; types may refer to each other',
      severity: 'error',
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only'] } },
    },
    { name: 'resolvable', comment: 'an import must exist', severity: 'error', from: {}, to: { couldNotResolve: true } },
  ],
  options: {
    tsPreCompilationDeps: true,
    parser: 'tsc',
    tsConfig: { fileName: 'tsconfig.json' },
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '^(dist|\\.exp)/|/fixtures/' },
    moduleSystems: ['es6', 'cjs'],
    enhancedResolveOptions: {
      extensions: ['.ts', '.js', '.mjs', '.cjs', '.json'],
      exportsFields: ['exports'],
      conditionNames: ['import', 'node', 'default', 'types'],
    },
  },
};
